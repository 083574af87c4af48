/**
 * `tap-ctl metrics` and `blktap exporter` with real tapdisks, and what Prometheus' own tool says of what they
 * print.
 *
 * @module
 */
import assert from "node:assert/strict";
import { familiesIn } from "../support/prometheus.ts";
import {
  isRunning,
  needsServed,
  type Tapdisks,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { fio } from "../support/fio.ts";
import { findPromtool } from "../support/promtool.ts";
import { binaryPath, run, runOk } from "../support/tools.ts";

const { ignore, suffix } = needsServed("fio");
const promtool = await findPromtool();

const ALERTS = new URL("../../packaging/prometheus-alerts.yml", import.meta.url).pathname;

function test(name: string, body: (tapdisks: Tapdisks, folder: string) => Promise<void>): void {
  Deno.test({ name: `metrics: ${name}${suffix}`, ignore, fn: () => withTapdisks(body) });
}

/** An exporter in a process of its own. */
class Exporter {
  readonly #child: Deno.ChildProcess;
  #log = "";
  readonly #reading: Promise<void>;

  constructor(tapdisks: Tapdisks, ...args: string[]) {
    this.#child = new Deno.Command(binaryPath("blktap"), {
      args: ["exporter", ...args],
      env: { BLKTAP_CONTROL_DIR: tapdisks.controlFolder },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.#reading = this.#read();
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const bytes of this.#child.stderr) {
      this.#log += decoder.decode(bytes, { stream: true });
    }
  }

  /** Where it serves, once it does. */
  async place(): Promise<string> {
    const pattern = /Serves metrics at (.*)\n/;
    await waitUntil(() => pattern.test(this.#log) || !isRunning(this.#child.pid), "it serves");
    return pattern.exec(this.#log)?.[1] ?? assert.fail(this.#log);
  }

  /** Sends a signal; returns the exit status and what was logged. */
  async end(signal: Deno.Signal = "SIGTERM"): Promise<{ code: number; log: string }> {
    if (isRunning(this.#child.pid)) this.#child.kill(signal);
    const { code } = await this.#child.status;
    await this.#reading;
    return { code, log: this.#log };
  }
}

async function scrape(place: string): Promise<string> {
  if (!place.startsWith("/")) return await (await fetch(`http://${place}/metrics`)).text();
  using connection = await Deno.connect({ transport: "unix", path: place });
  await connection.write(new TextEncoder().encode("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"));
  const answer = await new Response(connection.readable).text();
  return answer.slice(answer.indexOf("\r\n\r\n") + 4);
}

function valueOf(
  text: string,
  name: string,
  labels: Record<string, string> = {},
): number | undefined {
  const family = familiesIn(text).get(name.replace(/_(bucket|sum|count)$/, "")) ??
    familiesIn(text).get(name);
  return family?.samples.find((sample) =>
    sample.name === name &&
    Object.entries(labels).every(([label, value]) => sample.labels[label] === value)
  )?.value;
}

test("they count what fio does, printed and served alike", async (tapdisks, folder) => {
  await runOk(binaryPath("vhd-util"), ["create", "-n", `${folder}/a.vhd`, "-s", "16"]);
  const disk = await tapdisks.serve(`vhd:${folder}/a.vhd`);
  const [job] = await fio(disk.uri, ["rw=randrw", "bs=4k", "size=8m", "iodepth=8"]);
  const printed = await tapdisks.tapCtlOk("metrics");
  const exporter = new Exporter(tapdisks, "--listen", "127.0.0.1:0");
  const minor = `${disk.minor}`;
  for (const text of [`${printed}\n`, await scrape(await exporter.place())]) {
    assert.equal(valueOf(text, "blktap_disk_read_bytes_total", { minor }), job.read.io_bytes);
    const writes = { minor, kind: "write" };
    assert.equal(valueOf(text, "blktap_disk_requests_total", writes), job.write.total_ios);
    const timed = valueOf(text, "blktap_disk_request_duration_seconds_count", writes);
    assert.equal(timed, job.write.total_ios);
    const file = Deno.statSync(`${folder}/a.vhd`);
    assert.equal(valueOf(text, "blktap_image_file_size_bytes", { minor, layer: "0" }), file.size);
    assert.ok((valueOf(text, "blktap_disk_filesystem_available_bytes", { minor }) ?? 0) > 0);
    const info = familiesIn(text).get("blktap_disk_info")?.samples[0].labels;
    assert.deepEqual([info?.type, info?.path, info?.pid], [
      "vhd",
      `${folder}/a.vhd`,
      `${disk.pid}`,
    ]);
  }
  assert.equal((await exporter.end()).code, 0);
});

test("a tapdisk that hangs keeps nobody waiting but once", async (tapdisks, folder) => {
  const image = (name: string): string => {
    Deno.writeFileSync(`${folder}/${name}`, new Uint8Array(4096));
    return `aio:${folder}/${name}`;
  };
  const hung = await tapdisks.serve(image("a.raw"));
  const lively = await tapdisks.serve(image("b.raw"));
  const exporter = new Exporter(tapdisks, "--socket", `${folder}/metrics`);
  const place = await exporter.place();
  const pid = `${lively.pid}`;
  Deno.kill(hung.pid, "SIGSTOP");
  try {
    let text: string;
    // On a machine that is slow, also the other one may take too long for a scrape.
    do text = await scrape(place); while (valueOf(text, "blktap_tapdisk_up", { pid }) !== 1);
    assert.equal(valueOf(text, "blktap_tapdisk_up", { pid: `${hung.pid}` }), 0);
    assert.equal(valueOf(text, "blktap_disk_read_bytes_total", { minor: `${lively.minor}` }), 0);
    assert.equal(
      valueOf(text, "blktap_disk_read_bytes_total", { minor: `${hung.minor}` }),
      undefined,
    );
    // One that hung is left out for some seconds, in which a scrape does not take the second of its time-out.
    for (let seconds = Infinity; seconds >= 1;) {
      text = await scrape(place);
      assert.equal(valueOf(text, "blktap_tapdisk_up", { pid: `${hung.pid}` }), 0);
      seconds = valueOf(text, "blktap_gather_duration_seconds") ?? NaN;
    }
  } finally {
    Deno.kill(hung.pid, "SIGCONT");
  }
  assert.equal((await exporter.end("SIGINT")).code, 0);
  assert.throws(() => Deno.lstatSync(place), Deno.errors.NotFound);
});

test(
  "a socket is for its owner, and is taken over from a killed exporter only",
  async (tapdisks, folder) => {
    await tapdisks.spawn().then((pid) => tapdisks.kill(pid));
    const path = `${folder}/metrics`;
    const killed = new Exporter(tapdisks, "--socket", path);
    await killed.place();
    assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o660);
    const second = new Exporter(tapdisks, "--socket", path);
    const refused = await second.end("SIGCONT");
    assert.equal(refused.code, 98);
    assert.match(refused.log, /blktap exporter: Cannot listen at .*another program listens there/);
    await killed.end("SIGKILL");
    const third = new Exporter(tapdisks, "--socket", path);
    assert.match(await scrape(await third.place()), /^blktap_dead_tapdisks 1$/m);
    assert.equal((await third.end()).code, 0);
    Deno.writeTextFileSync(path, "a file");
    const fourth = await new Exporter(tapdisks, "--socket", path).end("SIGCONT");
    assert.equal(fourth.code, 98);
    assert.equal(Deno.readTextFileSync(path), "a file");
  },
);

test("command lines that are wrong end with EINVAL and the usage", async () => {
  const { code, stderr } = await run(binaryPath("blktap"), ["exporter", "--listen", "nowhere"]);
  assert.equal(code, 22);
  assert.match(stderr, /no HOST:PORT[^]*Usage: blktap exporter/);
  const help = await runOk(binaryPath("blktap"), ["exporter", "--help"]);
  assert.match(help, /--socket PATH/);
});

Deno.test({
  name: `metrics: promtool has nothing to say against them${suffix || promtool.suffix}`,
  ignore: ignore || promtool.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      await runOk(binaryPath("vhd-util"), ["create", "-n", `${folder}/a.vhd`, "-s", "16"]);
      await tapdisks.serve(`vhd:${folder}/a.vhd`);
      Deno.writeTextFileSync(`${folder}/metrics`, `${await tapdisks.tapCtlOk("metrics")}\n`);
      const command = `'${promtool.path}' check metrics <'${folder}/metrics'`;
      const { code, stdout, stderr } = await run("sh", ["-c", command]);
      assert.deepEqual([code, stdout, stderr], [0, "", ""]);
    }),
});

/** Series of a host in trouble, and the alert that each raises. */
const TROUBLE: readonly (readonly [alert: string, series: string])[] = [
  ["BlktapDiskFull", 'blktap_disk_requests_retrying{minor="1",error="ENOSPC"} 3x60'],
  ["BlktapMirrorAlone", 'blktap_disk_redirected_bytes_total{minor="1"} 0+512x60'],
  ["BlktapDiskRetrying", 'blktap_disk_requests_retrying{minor="1",error="EIO"} 1x60'],
  ["BlktapDiskHanging", 'blktap_disk_oldest_request_seconds{minor="1"} 31+60x60'],
  ["BlktapDiskErrors", 'blktap_disk_failed_requests_total{minor="1",kind="read"} 0+1x60'],
  ["BlktapDiskFailed", 'blktap_disk_state{minor="1",state="failed"} 1x60'],
  ["BlktapDiskPaused", 'blktap_disk_state{minor="1",state="paused"} 1x60'],
  ["BlktapSecondaryFailed", 'blktap_disk_secondary_failed{minor="1"} 1x60'],
  ["BlktapLongChain", 'blktap_disk_chain_images{minor="1"} 26x60'],
  ["BlktapTapdiskHanging", 'blktap_tapdisk_up{pid="7"} 0x60'],
  ["BlktapTapdiskDead", "blktap_dead_tapdisks 1x60"],
  ["BlktapTapdiskDead", 'blktap_unserved_minors{recoverable="true"} 1x60'],
];

Deno.test({
  name: `metrics: alerts are raised by what they are for${promtool.suffix}`,
  ignore: promtool.ignore,
  async fn() {
    const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
    try {
      await runOk(promtool.path, ["check", "rules", ALERTS]);
      const test = ([alert, series]: (typeof TROUBLE)[number]): string => {
        const at = series.lastIndexOf(" ");
        return `  - interval: 1m
    input_series:
      - series: '${series.slice(0, at)}'
        values: '${series.slice(at + 1)}'
    promql_expr_test:
      - expr: count(ALERTS{alertname="${alert}",alertstate="firing"})
        eval_time: 40m
        exp_samples:
          - value: 1
            labels: '{}'
`;
      };
      const text = `rule_files: ["${ALERTS}"]\nevaluation_interval: 1m\ntests:\n${
        TROUBLE.map(test).join("")
      }`;
      Deno.writeTextFileSync(`${folder}/test.yml`, text);
      const { code, stdout, stderr } = await run(promtool.path, [
        "test",
        "rules",
        `${folder}/test.yml`,
      ]);
      assert.equal(code, 0, `${stdout}${stderr}\n${text}`);
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  },
});
