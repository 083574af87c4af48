import assert from "node:assert/strict";
import { closeFile } from "../../ffi/files.ts";
import { Errno } from "../../ffi/errno.ts";
import { FileSink } from "../../src/log/file_sink.ts";
import { journalEntry, JournalSink } from "../../src/log/journal_sink.ts";
import { Logger, type LogLevel } from "../../src/log/log.ts";
import { syslogEntry, SyslogSink } from "../../src/log/syslog_sink.ts";
import { needs, withTempDir } from "../support/tools.ts";

Deno.test("log: an entry is one line, for every sink, with its level", () => {
  const got: string[] = [];
  const sink = {
    write: (level: LogLevel, message: string) => got.push(`${level} ${message}`),
    reopen: () => got.push("reopen"),
    close: () => got.push("close"),
  };
  const log = new Logger([sink]);
  log.info("one\ntwo\r\nthree");
  log.addSink(sink);
  log.warn("careful");
  log.error("broken");
  log.reopen();
  log.close();
  assert.deepEqual(got, [
    "info one two three",
    ...["warning careful", "error broken", "reopen", "close"].flatMap((x) => [x, x]),
  ]);
});

Deno.test("log: the file goes on, and after a reopen goes on under its name", async () => {
  await withTempDir((folder) => {
    const path = `${folder}/tapdisk.log`;
    Deno.writeTextFileSync(path, "earlier\n");
    const sink = new FileSink(path, "tapdisk");
    sink.write("info", "first");
    Deno.renameSync(path, `${path}.1`);
    sink.write("info", "still the old file");
    sink.reopen();
    sink.write("error", "second");
    sink.close();
    sink.write("info", "after the end");
    const line = `\\d{4}-\\d\\d-\\d\\dT[\\d:.]+Z tapdisk\\[${Deno.pid}\\]`;
    assert.match(
      Deno.readTextFileSync(`${path}.1`),
      new RegExp(`^earlier\\n${line} info: first\\n${line} info: still the old file\\n$`),
    );
    assert.match(Deno.readTextFileSync(path), new RegExp(`^${line} error: second\\n$`));
    assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
  });
});

Deno.test("log: a folder that is gone makes the file sink silent, not broken", async () => {
  await withTempDir((folder) => {
    Deno.mkdirSync(`${folder}/log`);
    const sink = new FileSink(`${folder}/log/tapdisk.log`, "tapdisk");
    Deno.removeSync(`${folder}/log`, { recursive: true });
    sink.reopen();
    sink.write("info", "nowhere");
    Deno.mkdirSync(`${folder}/log`);
    sink.reopen();
    sink.write("info", "back");
    sink.close();
    assert.match(Deno.readTextFileSync(`${folder}/log/tapdisk.log`), /info: back\n$/);
  });
});

Deno.test("log: a file that cannot be closed in order does not keep its process from ending", async () => {
  await withTempDir((folder) => {
    const path = `${folder}/tapdisk.log`;
    const sink = new FileSink(path, "tapdisk");
    const own = Array.from(Deno.readDirSync("/proc/self/fd"), ({ name }) => name).find((name) => {
      try {
        return Deno.readLinkSync(`/proc/self/fd/${name}`) === path;
      } catch {
        return false;
      }
    });
    // close(2) fails then, as at the end of a file on a server that has no room.
    closeFile(Number(own));
    sink.close();
    sink.write("info", "nowhere");
  });
});

Deno.test("log: a line may be JSON, with what the entry is about", async () => {
  await withTempDir((folder) => {
    const sink = new FileSink(`${folder}/tapdisk.log`, "tapdisk", true);
    const log = new Logger([sink]);
    const cause = { pid: 12, command: "tap-ctl pause -p 1 -m 3", durationMs: 1.23456 };
    log.info("Paused\nminor 3", { event: "paused", minor: 3, image: "vhd:/a\u0007.vhd", ...cause });
    log.warn("full", { minor: 3, errno: Errno.ENOSPC, file: "/a.vhd" });
    log.error("plain");
    log.close();
    const lines = Deno.readTextFileSync(`${folder}/tapdisk.log`).trimEnd().split("\n");
    const [first, second, third] = lines.map((line) => JSON.parse(line));
    const { time, ...rest } = first;
    assert.match(time, /^\d{4}-.*Z$/);
    assert.deepEqual(rest, {
      ...{ program: "tapdisk", pid: Deno.pid, level: "info", message: "Paused minor 3" },
      ...{ event: "paused", minor: 3, image: "vhd:/a\u0007.vhd" },
      ...{ by_pid: 12, by_command: "tap-ctl pause -p 1 -m 3", duration_ms: 1.235 },
    });
    assert.ok(!lines[0].includes("\u0007"), "nothing acts on a terminal");
    assert.deepEqual([second.level, second.errno, second.error, second.file], [
      ...["warning", Errno.ENOSPC, "ENOSPC", "/a.vhd"],
    ]);
    assert.deepEqual(Object.keys(third), ["time", "program", "pid", "level", "message"]);
  });
});

Deno.test("log: an entry of the journal has a field for each thing it is about", () => {
  const fields = { event: "retrying", minor: 3, errno: 5, file: "/a\nb" } as const;
  const entry = journalEntry("warning", "It fails", { ident: "tapdisk", fields });
  const text = new TextDecoder("latin1").decode(entry);
  const length = String.fromCharCode(4, 0, 0, 0, 0, 0, 0, 0);
  assert.deepEqual(text.split("BLKTAP_FILE\n"), [
    "MESSAGE=It fails\nPRIORITY=4\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=tapdisk\n" +
    `SYSLOG_PID=${Deno.pid}\nERRNO=5\nBLKTAP_ERROR=EIO\nBLKTAP_EVENT=retrying\nBLKTAP_MINOR=3\n`,
    `${length}/a\nb\n`,
  ]);
});

Deno.test("log: a syslog entry has facility, severity, time and tag", () => {
  const time = new Date(2026, 0, 5, 9, 8, 7);
  const tag = "tapdisk[12]";
  assert.equal(
    syslogEntry("error", "Broken", { tag, time }),
    "<27>Jan  5 09:08:07 tapdisk[12]: Broken",
  );
  assert.equal(syslogEntry("info", "Fine", { tag, time }).slice(0, 4), "<30>");
  assert.equal(syslogEntry("warning", "Hm", { tag, time }).slice(0, 4), "<28>");
});

/** Prints each datagram that arrives at a UNIX socket, and exits at the last one. */
const RECEIVER = `
import os, socket, sys
path = sys.argv[1]
if os.path.exists(path): os.unlink(path)
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(path)
print("ready", flush=True)
while True:
    entry = s.recv(4096).decode()
    print(entry, flush=True)
    if entry.rstrip().endswith("end"): break
`;

async function receiver(path: string): Promise<{ rest: () => Promise<string> }> {
  const child = new Deno.Command("python3", {
    args: ["-c", RECEIVER, path],
    stdout: "piped",
    stdin: "null",
  }).spawn();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = (await reader.read()).value ?? "";
  return {
    async rest(): Promise<string> {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
      }
      await child.status;
      return text;
    },
  };
}

const python = needs("python3");

Deno.test({
  name: `log: the journal gets datagrams, also after it was restarted${python.suffix}`,
  ignore: python.ignore,
  async fn() {
    await withTempDir(async (folder) => {
      const path = `${folder}/socket`;
      assert.throws(() => new JournalSink("tapdisk", path), { code: "ENOENT" });
      const first = await receiver(path);
      const sink = new JournalSink("tapdisk", path);
      sink.write("info", "one", { event: "opened", minor: 7 });
      sink.write("info", "two", { image: "vhd:/the\nend" });
      assert.match(await first.rest(), /MESSAGE=one\n(.*\n)*BLKTAP_EVENT=opened\nBLKTAP_MINOR=7\n/);
      sink.write("info", "nobody hears this");
      const second = await receiver(path);
      sink.write("error", "three", { image: "vhd:/the\nend" });
      sink.close();
      sink.write("error", "after the end");
      assert.match(await second.rest(), /^ready\nMESSAGE=three\nPRIORITY=3\n/);
    });
  },
});

Deno.test({
  name: `log: syslog gets datagrams, also after the daemon was restarted${python.suffix}`,
  ignore: python.ignore,
  async fn() {
    await withTempDir(async (folder) => {
      const path = `${folder}/log`;
      assert.throws(() => new SyslogSink("tapdisk", path), { code: "ENOENT" });
      const first = await receiver(path);
      const sink = new SyslogSink("tapdisk", path);
      sink.write("info", "one");
      sink.write("info", "end");
      assert.match(await first.rest(), /<30>.* tapdisk\[\d+\]: one\n.*: end\n/);
      sink.write("info", "nobody hears this");
      const second = await receiver(path);
      sink.write("warning", "two");
      sink.write("info", "end");
      sink.close();
      assert.match(await second.rest(), /^ready\n<28>.*: two\n.*: end\n$/);
    });
  },
});
