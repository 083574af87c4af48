import assert from "node:assert/strict";
import { readJunit } from "../../scripts/junit.ts";

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
