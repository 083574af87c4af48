import assert from "node:assert/strict";
import { readJunit, type TestResult, withLost } from "../../scripts/junit.ts";

const REPORT = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="4" failures="1" errors="1" time="0.288">
    <testsuite name="./a_test.ts" tests="3" disabled="1" errors="0" failures="1">
        <testcase name="1 &lt; 2 &amp;&amp; &quot;x&quot; &#xe9;&#233;" classname="a" time="0.000">
        </testcase>
        <testcase name="later" classname="./a_test.ts" time="0.000" line="2" col="6">
            <skipped/>
        </testcase>
        <testcase name="wrong" classname="./a_test.ts" time="0.000" line="3" col="6">
            <failure message="m">Error: &lt;/testcase&gt; &lt;skipped/&gt;</failure>
        </testcase>
    </testsuite>
    <testsuite name="./b_test.ts" tests="1" disabled="0" errors="1" failures="0">
        <testcase name="broken off" classname="./b_test.ts" time="0.000" line="1" col="6">
            <error message="Cancelled"/>
        </testcase>
    </testsuite>
</testsuites>
`;

Deno.test("junit: each test with its file, its name as it was written, and what came of it", () => {
  assert.deepEqual(readJunit(REPORT), [
    { file: "./a_test.ts", name: '1 < 2 && "x" éé', outcome: "passed" },
    { file: "./a_test.ts", name: "later", outcome: "skipped" },
    {
      file: "./a_test.ts",
      name: "wrong",
      outcome: "failed",
      reason: "Error: </testcase> <skipped/>",
    },
    { file: "./b_test.ts", name: "broken off", outcome: "failed", reason: "Cancelled" },
  ]);
});

Deno.test("junit: a test that ends in its own tag, and no report at all", () => {
  const one = '<testsuite name="f"><testcase name="t" time="0"/></testsuite>';
  assert.deepEqual(readJunit(one), [{ file: "f", name: "t", outcome: "passed" }]);
  assert.deepEqual(readJunit(""), []);
});

Deno.test("junit: a process that ended before all of its files ran has failed, whatever its status", () => {
  const passed: TestResult = { file: "./tests/a_test.ts", name: "t", outcome: "passed" };
  const files = ["tests/a_test.ts", "tests/b c_test.ts", "tests/d_test.ts"];
  const lost = (
    results: readonly TestResult[],
    { of = files, failure, isFiltered = false }: {
      of?: readonly string[];
      failure?: string;
      isFiltered?: boolean;
    } = {},
  ): string[] =>
    withLost(results, { files: of, failure, isFiltered })
      .filter(({ outcome }) => outcome === "failed").map(({ file, name }) => `${file}: ${name}`);
  const [, b, d] = files;
  assert.deepEqual(lost([passed]), [b, d].map((file) => `${file}: none of its tests ran`));
  assert.deepEqual(lost([passed], { failure: "exit status 1" }), [`${b} ${d}: exit status 1`]);
  assert.deepEqual(lost([], { of: [d] }), [`${d}: none of its tests ran`]);
  assert.deepEqual(lost([passed], { isFiltered: true }), []);
  // A folder, and a file by another name of it.
  assert.deepEqual(lost([passed], { of: ["tests"] }), []);
  assert.deepEqual(lost([passed], { of: ["/x/tests/a_test.ts"], failure: "ended by SIGSEGV" }), [
    "/x/tests/a_test.ts: ended by SIGSEGV",
  ]);
  const failed: TestResult = { ...passed, outcome: "failed" };
  assert.deepEqual(lost([failed], { failure: "exit status 1" }), ["./tests/a_test.ts: t"]);
});
