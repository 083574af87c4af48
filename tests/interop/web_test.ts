/** `blktap web` over HTTP, with real tapdisks: who is served what, and that nothing stops it. */
import assert from "node:assert/strict";
import {
  commandLine,
  type ControlBench,
  isRunning,
  until,
  withControlBench,
} from "../support/control.ts";
import { binaryPath, needs, run, runOk } from "../support/tools.ts";
import { ask, connect, fieldIn, requestText, RunningPage, withPage } from "../support/web.ts";

const built = needs("dist/web/page.js");
const asRoot = needs("dist/web/page.js", "root", "setpriv", "curl");

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test({
    name: `${name}${built.suffix}`,
    ignore: built.ignore,
    fn: () => withControlBench(body),
  });
}

/** Serves a VHD; returns its tapdisk's process, its minor, and its file. */
async function serveVhd(
  bench: ControlBench,
  name = "disk.vhd",
): Promise<{ pid: number; minor: number; path: string }> {
  const path = `${bench.folder}/${name}`;
  const [program, ...args] = commandLine("vhd-util", "create", "-n", path, "-s", "64");
  await runOk(program, args);
  const [tapCtl, ...create] = commandLine("tap-ctl", "create", "-a", `vhd:${path}`);
  await runOk(tapCtl, create, { env: bench.env });
  const line = (await bench.list()).find((each) => each.includes(`minor=`) && each.endsWith(name));
  const [, pid, minor] = /pid=(\d+) minor=(\d+)/.exec(line ?? "") ?? [];
  return { pid: Number(pid), minor: Number(minor), path };
}

const LISTEN = ["--listen", "127.0.0.1:0"];

test("web: the list and the page of a disk are whole without a script", async (bench) => {
  const { pid, minor, path } = await serveVhd(bench, "a disk.vhd");
  await withPage(bench, LISTEN, async ({ port, line }) => {
    assert.match(line, /^Serves http:\/\/127\.0\.0\.1:\d+\/ \(read-only\)$/);
    const list = await ask({ port });
    assert.equal(list.status, 200);
    assert.match(list.body, new RegExp(`<a href="/disks/${pid}/${minor}">a disk.vhd</a>`));
    assert.match(list.body, /1 disk\./);
    const page = `/disks/${pid}/${minor}`;
    // The drawing comes when the images have been read.
    const disk = await untilBody(port, page, /<svg [^>]*aria-labelledby="chain-drawing-title/);
    assert.ok(disk.includes(`<dd class="name">vhd:${path}</dd>`));
    assert.match(disk, /<dd data-field="state">running<\/dd>/);
    assert.match(disk, /<dd data-field="size">64 MiB<\/dd>/);
    assert.match(disk, /No request is open\./);
    assert.ok(!disk.includes("/snapshot"), "no change is offered");
    await untilBody(port, `${page}/map`, /A closer look/);
    await untilBody(port, `${page}/map?at=4194304&length=8192`, /a square is 512 B/);
    for (const gone of [`/disks/${pid}/${minor + 1}`, "/disks/1/x", "/nothing", `/disks/${pid}`]) {
      assert.equal((await ask({ port }, { path: gone })).status, 404, gone);
    }
    assert.equal((await ask({ port }, { path: "/events" })).status, 200);
  });
});

test("web: every answer forbids scripts of others, frames and guesses of types", async (bench) => {
  await withPage(bench, LISTEN, async ({ port }) => {
    const style = /href="(\/assets\/page-[0-9a-f]{16}\.css)"/.exec((await ask({ port })).body)?.[1];
    for (const path of ["/", "/nothing", style ?? "", "/images"]) {
      const { headers } = await ask({ port }, { path });
      const policy = headers.get("content-security-policy") ?? "";
      assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self';/, path);
      assert.match(policy, /frame-ancestors 'none'/);
      assert.ok(!policy.includes("unsafe"));
      assert.equal(headers.get("x-content-type-options"), "nosniff");
      assert.equal(headers.get("x-frame-options"), "DENY");
      assert.equal(headers.get("access-control-allow-origin"), null);
    }
    const refused = await ask({ port }, { headers: { host: "evil.example" } });
    assert.match(refused.headers.get("content-security-policy") ?? "", /default-src 'none'/);
  });
});

test("web: names with markup are text", async (bench) => {
  const name = `<img src=x onerror=alert(1)>"'&.vhd`;
  await serveVhd(bench, name);
  await withPage(bench, [...LISTEN, "--images", bench.folder], async ({ port }) => {
    const { pid, minor } = await firstDisk(bench);
    for (
      const path of [
        "/",
        "/events",
        "/images",
        `/disks/${pid}/${minor}`,
        `/disks/${pid}/${minor}/map`,
      ]
    ) {
      const { body } = await ask({ port }, { path });
      assert.ok(!body.includes("<img"), path);
    }
    const { body } = await ask({ port });
    assert.ok(body.includes("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;.vhd"));
  });
});

async function firstDisk(bench: ControlBench): Promise<{ pid: number; minor: number }> {
  const [, pid, minor] = /pid=(\d+) minor=(\d+)/.exec((await bench.list())[0]) ?? [];
  return { pid: Number(pid), minor: Number(minor) };
}

test("web: wrong names and origins are refused, and nothing is changed by them", async (bench) => {
  const { pid, minor, path } = await serveVhd(bench);
  await withPage(
    bench,
    [...LISTEN, "--allow-changes", "--name", "dom0.example"],
    async ({ port }) => {
      const status = async (headers: Record<string, string>): Promise<number> =>
        (await ask({ port }, { headers })).status;
      assert.equal(await status({ host: `localhost:${port}` }), 200);
      assert.equal(await status({ host: "dom0.example" }), 200);
      assert.equal(await status({ host: "evil.example" }), 421);
      assert.equal(await status({ "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors" }), 403);
      const form = `/disks/${pid}/${minor}/snapshot`;
      const { body } = await ask({ port }, { path: form });
      const token = encodeURIComponent(fieldIn(body, "token"));
      const post = async (headers: Record<string, string>, text: string) =>
        await ask({ port }, { method: "POST", path: form, headers, body: text });
      const check = `step=check&token=${token}&name=next.vhd&rename=no`;
      assert.equal((await post({}, check)).status, 403, "no origin");
      assert.equal((await post({ origin: "http://evil.example" }, check)).status, 403);
      const own = { origin: "http://localhost" };
      assert.equal((await post(own, check.replace(token, "x"))).status, 400, "no token");
      // The token of the first step is none for the second.
      assert.equal((await post(own, check.replace("step=check", "step=make"))).status, 400);
      assert.equal((await post(own, "x".repeat(10_000))).status, 400, "too large");
      assert.equal((await post({ ...own, "content-type": "text/plain" }, check)).status, 400);
      for (const name of ["", "..", "a/b", ".hidden", "a%00b", "x".repeat(256)]) {
        const wrong = `step=check&token=${token}&name=${name}`;
        assert.equal((await post(own, wrong)).status, 400, name);
      }
      assert.deepEqual(
        [...Deno.readDirSync(bench.folder)].filter(({ isFile }) => isFile).map(({ name }) => name),
        [
          path.slice(path.lastIndexOf("/") + 1),
        ],
      );
    },
  );
});

test("web: without --allow-changes there is no way to change anything", async (bench) => {
  const { pid, minor } = await serveVhd(bench);
  await withPage(bench, LISTEN, async ({ port }) => {
    const path = `/disks/${pid}/${minor}/snapshot`;
    assert.equal((await ask({ port }, { path })).status, 404);
    for (const step of ["check", "make"]) {
      const headers = { origin: "http://localhost" };
      const body = `step=${step}&name=next.vhd&token=x`;
      assert.equal((await ask({ port }, { method: "POST", path, headers, body })).status, 404);
    }
  });
});

test("web: a snapshot is made in two steps, and is told in the events", async (bench) => {
  const { pid, minor, path } = await serveVhd(bench);
  await withPage(bench, [...LISTEN, "--allow-changes"], async ({ port }) => {
    const form = `/disks/${pid}/${minor}/snapshot`;
    const headers = { origin: "http://localhost" };
    const before = await bench.list();
    const first = await ask({ port }, { path: form });
    const post = async (fields: Record<string, string>) =>
      await ask({ port }, {
        method: "POST",
        path: form,
        headers,
        body: String(new URLSearchParams(fields)),
      });
    const wish = { name: "kept.vhd", rename: "yes" };
    const second = await post({ step: "check", token: fieldIn(first.body, "token"), ...wish });
    assert.equal(second.status, 200, second.body);
    assert.match(second.body, /kept\.vhd<\/span> keeps the data of now/);
    assert.deepEqual(await bench.list(), before, "nothing is done yet");
    assert.throws(() => Deno.lstatSync(`${bench.folder}/kept.vhd`), Deno.errors.NotFound);
    const make = { step: "make", token: fieldIn(second.body, "token"), ...wish };
    const made = await post(make);
    assert.equal(made.status, 303, made.body);
    const shown = await ask({ port }, { path: made.headers.get("location") ?? "" });
    assert.match(shown.body, /The snapshot is made: vhd:[^<]* is open on /);
    assert.ok(Deno.statSync(`${bench.folder}/kept.vhd`).isFile && Deno.statSync(path).isFile);
    const [program, ...args] = commandLine("vhd-util", "query", "-n", path, "-p");
    assert.match(await runOk(program, args), /kept\.vhd/);
    // The same form again: the name exists now.
    const again = await post(make);
    assert.equal(again.status, 400);
    assert.match(again.body, /EEXIST/);
    await untilBody(port, "/events", /a snapshot was made: \S*kept\.vhd keeps the data/);
  });
});

async function untilBody(port: number, path: string, wanted: RegExp): Promise<string> {
  const untilMs = performance.now() + 60_000;
  for (;;) {
    const { body } = await ask({ port }, { path });
    if (wanted.test(body)) return body;
    assert.ok(performance.now() < untilMs, `${path} never had ${wanted}: ${body}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

test("web: a token is needed where one was given", async (bench) => {
  const file = `${bench.folder}/token`;
  const token = "correct-horse-battery-staple";
  Deno.writeTextFileSync(file, `${token}\n`, { mode: 0o600 });
  await withPage(bench, [...LISTEN, "--token-file", file], async ({ port, line }) => {
    assert.ok(!line.includes(token), line);
    const status = async (path: string, headers: Record<string, string> = {}): Promise<number> =>
      (await ask({ port }, { path, headers })).status;
    for (const path of ["/", "/stream", "/events", "/images", "/disks/1/0"]) {
      assert.equal(await status(path), 401, path);
    }
    assert.equal(await status("/", { authorization: `Bearer ${token}` }), 200);
    assert.equal(await status("/", { authorization: "Bearer wrong" }), 401);
    assert.equal(await status("/?token=wrong"), 401);
    const entered = await ask({ port }, { path: `/events?token=${token}&x=1` });
    assert.equal(entered.status, 303);
    assert.equal(entered.headers.get("location"), "/events?x=1");
    const [cookie] = (entered.headers.get("set-cookie") ?? "").split(";");
    assert.equal(await status("/", { cookie }), 200);
    assert.equal(await status("/", { cookie: `${cookie}x` }), 401);
    const headers = { origin: "http://localhost" };
    const post = async (body: string) =>
      await ask({ port }, { method: "POST", path: "/token", headers, body });
    assert.equal((await post("token=wrong")).status, 401);
    assert.equal((await post(`token=${token}`)).status, 303);
  });
});

test("web: a token file that others can read is refused", async (bench) => {
  const file = `${bench.folder}/token`;
  Deno.writeTextFileSync(file, "correct-horse-battery-staple\n");
  Deno.chmodSync(file, 0o644);
  const refused = async (): Promise<string> => {
    const [program, ...args] = commandLine("web", ...LISTEN, "--token-file", file);
    const { code, stderr } = await run(program, args, { env: bench.env });
    assert.notEqual(code, 0);
    return stderr;
  };
  assert.match(await refused(), /other users can read it.*0600/);
  Deno.chmodSync(file, 0o600);
  Deno.writeTextFileSync(file, "short\n");
  assert.match(await refused(), /at least 16 printable characters/);
  Deno.removeSync(file);
  assert.match(await refused(), /token.*ENOENT/);
});

test("web: on other addresses than those of this machine a token is made and printed", async (bench) => {
  await withPage(bench, ["--listen", "0.0.0.0:0"], async ({ line, port }) => {
    const [, token] = /\?token=([\w-]{32}) \(read-only\)$/.exec(line) ?? [];
    assert.ok(token !== undefined, line);
    assert.equal((await ask({ port })).status, 401);
    const headers = { authorization: `Bearer ${token}` };
    assert.equal((await ask({ port }, { headers })).status, 200);
  });
});

Deno.test({
  name: `web: other users of this machine are not served without a token${asRoot.suffix}`,
  ignore: asRoot.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      await withPage(bench, LISTEN, async ({ url, port }) => {
        const args = ["--reuid=65534", "--clear-groups", "curl", "-s", "-w", "%{http_code}", url];
        const { stdout } = await run("setpriv", args);
        assert.match(stdout, /Only root and the user[^]*403$/);
        assert.equal((await ask({ port })).status, 200);
      });
    }),
});

test("web: on a UNIX socket of its owner, which is removed at the end", async (bench) => {
  const path = `${bench.folder}/web.sock`;
  const page = await RunningPage.start(bench, ["--socket", path]);
  assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
  assert.equal((await ask({ path })).status, 200);
  assert.equal((await ask({ path }, { headers: { host: "evil.example" } })).status, 421);
  const [program, ...args] = commandLine("web", "--socket", path);
  const second = await run(program, args, { env: bench.env });
  assert.match(second.stderr, /Cannot listen on .*EADDRINUSE/);
  assert.equal((await ask({ path })).status, 200);
  const { code, errors } = await page.end();
  assert.deepEqual([code, errors], [0, ""]);
  assert.throws(() => Deno.lstatSync(path), Deno.errors.NotFound);
  // A page that was killed leaves its socket; the next one takes its place.
  const killed = await RunningPage.start(bench, ["--socket", path]);
  await killed.end("SIGKILL");
  assert.ok(Deno.lstatSync(path).isSocket);
  await withPage(bench, ["--socket", path], async () => {
    assert.equal((await ask({ path })).status, 200);
  });
});

/** The messages of a stream, until there are so many. */
async function streamed(port: number, path: string, count: number): Promise<[string, unknown][]> {
  const conn = await connect({ port });
  const messages: [string, unknown][] = [];
  try {
    await conn.write(new TextEncoder().encode(requestText({ path })));
    let text = "";
    for await (const part of conn.readable.pipeThrough(new TextDecoderStream())) {
      text += part;
      const found = [...text.matchAll(/event: (\w+)\ndata: (.*)\n\n/g)];
      if (found.length < count) continue;
      for (const [, event, data] of found) messages.push([event, JSON.parse(data)]);
      break;
    }
  } finally {
    try {
      conn.close();
    } catch {
      // The stream has closed it.
    }
  }
  return messages;
}

test("web: streams bring the figures of each second", async (bench) => {
  const { pid, minor } = await serveVhd(bench);
  await withPage(bench, LISTEN, async ({ port }) => {
    const list = await streamed(port, "/stream", 3);
    assert.deepEqual(list.map(([event]) => event), ["first", "next", "next"]);
    const { rows } = list[2][1] as { rows: [string, { state: string }][] };
    assert.deepEqual(rows.map(([key, cells]) => [key, cells.state]), [[
      `${pid}.${minor}`,
      "running",
    ]]);
    const disk = await streamed(port, `/stream?disk=${pid}.${minor}`, 3);
    const last = disk[2][1] as { requests: string[]; texts: { state: string } };
    assert.deepEqual([last.requests, last.texts.state], [[], "running"]);
    assert.equal((await ask({ port }, { path: "/stream?disk=1.99" })).status, 404);
  });
});

test("web: there is a limit of streams, and room again when some end", async (bench) => {
  await withPage(bench, LISTEN, async ({ port }) => {
    const open: Deno.Conn[] = [];
    for (let i = 0; i < 64; i++) {
      const conn = await connect({ port });
      await conn.write(new TextEncoder().encode(requestText({ path: "/stream" })));
      await conn.read(new Uint8Array(64));
      open.push(conn);
    }
    const refused = await ask({ port }, { path: "/stream" });
    assert.equal(refused.status, 503);
    assert.equal((await ask({ port })).status, 200);
    for (const conn of open) conn.close();
    const untilMs = performance.now() + 60_000;
    for (;;) {
      const [first] = await streamed(port, "/stream", 1);
      if (first !== undefined) break;
      assert.ok(performance.now() < untilMs, "no room");
    }
  });
});

test("web: a tapdisk that hangs does not stop the page, and is shown", async (bench) => {
  const hung = await serveVhd(bench, "hung.vhd");
  const { pid, minor } = await serveVhd(bench, "well.vhd");
  assert.notEqual(hung.pid, pid);
  await withPage(bench, LISTEN, async ({ port }) => {
    Deno.kill(hung.pid, "SIGSTOP");
    try {
      await untilBody(port, "/", new RegExp(`Process ${hung.pid}[^<]*minor ${hung.minor}`));
      const disk = await ask({ port }, { path: `/disks/${pid}/${minor}` });
      assert.match(disk.body, /<dd data-field="state">running</);
      const shown = await ask({ port }, { path: `/disks/${hung.pid}/${hung.minor}` });
      assert.match(shown.body, /no answer/);
    } finally {
      Deno.kill(hung.pid, "SIGCONT");
    }
    await untilBody(port, `/disks/${hung.pid}/${hung.minor}`, /data-field="state">running</);
  });
});

const withFio = needs("dist/web/page.js", "fio");
Deno.test({
  name: `web: requests that wait are shown, and for what${withFio.suffix}`,
  ignore: withFio.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const { pid, minor } = await serveVhd(bench);
      const uri = `--uri=nbd+unix:///?socket=${bench.control}/nbd${pid}.${minor}`;
      const options = ["--rw=randread", "--bs=4k", "--size=32m", "--time_based", "--runtime=600"];
      const fio = new Deno.Command("fio", {
        args: ["--name=load", "--ioengine=nbd", uri, ...options],
        cwd: bench.folder,
        stdin: "null",
        stdout: "null",
        stderr: "null",
      }).spawn();
      try {
        await withPage(bench, LISTEN, async ({ port }) => {
          const page = `/disks/${pid}/${minor}`;
          await untilBody(port, "/", /<td data-field="iops" class="number">[1-9]/);
          await bench.ok(`pause -p ${pid} -m ${minor}`);
          await untilBody(port, page, /<li>slot \d+: read, sector \d+, 8 sectors, held by a pause/);
          await bench.ok(`unpause -p ${pid} -m ${minor}`);
        });
      } finally {
        fio.kill("SIGKILL");
        await fio.status;
      }
    }),
});

test("web: pauses and the end of a disk are events", async (bench) => {
  const { pid, minor } = await serveVhd(bench);
  await withPage(bench, LISTEN, async ({ port }) => {
    await bench.ok(`pause -p ${pid} -m ${minor}`);
    await untilBody(port, "/events", /is paused/);
    await bench.ok(`unpause -p ${pid} -m ${minor}`);
    await untilBody(port, "/events", /<\/span> runs/);
    await bench.ok(`destroy -p ${pid} -m ${minor}`);
    await untilBody(port, "/events", /is not served any more/);
    assert.match((await ask({ port })).body, /No disk is served on this host\./);
  });
});

test("web: images that nobody serves are found, and only those", async (bench) => {
  await serveVhd(bench, "served.vhd");
  const [program, ...args] = commandLine(
    "vhd-util",
    "create",
    "-n",
    `${bench.folder}/left.vhd`,
    "-s",
    "64",
  );
  await runOk(program, args);
  Deno.writeTextFileSync(`${bench.folder}/broken.vhd`, "no image");
  bench.rawImage("raw.img");
  Deno.writeTextFileSync(`${bench.folder}/readme.txt`, "x");
  // To open a pipe, or a device, would wait or do something.
  await runOk("mkfifo", [`${bench.folder}/pipe.vhd`]);
  Deno.symlinkSync(bench.folder, `${bench.folder}-link`);
  const folders = ["--images", `${bench.folder}-link`, "--images", `${bench.folder}/none`];
  await withPage(bench, [...LISTEN, ...folders], async ({ port }) => {
    const body = await untilBody(port, "/images", /4 images not served/);
    assert.match(body, /pipe\.vhd[^]*it is no regular file/);
    assert.match(body, /left\.vhd<\/th>[^]*kind dynamic/);
    assert.match(body, /broken\.vhd[^]*class="problem"/);
    assert.match(body, /raw\.img/);
    assert.ok(!body.includes("served.vhd") && !body.includes("readme.txt"));
    assert.match(body, /none[^<]*ENOENT/);
  }).finally(() => Deno.removeSync(`${bench.folder}-link`));
});

test("web: signals end it in order, with streams open", async (bench) => {
  const page = await RunningPage.start(bench, LISTEN);
  const conn = await connect(page);
  await conn.write(new TextEncoder().encode(requestText({ path: "/stream" })));
  await conn.read(new Uint8Array(64));
  const { code, errors } = await page.end("SIGINT");
  assert.deepEqual([code, errors], [0, ""]);
  conn.close();
  await until("it is gone", () => !isRunning(page.child.pid));
});

const binary = needs("dist/blktap");
Deno.test({
  name: `web: the binary has the script and the style inside${binary.suffix}`,
  ignore: binary.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const disk = await serveVhd(bench);
      const program = binaryPath("blktap");
      const page = await RunningPage.start(bench, LISTEN, { program });
      try {
        const { body } = await ask(page);
        const paths = [...body.matchAll(/"(\/assets\/page-[^"]+)"/g)].map(([, path]) => path);
        assert.equal(paths.length, 2);
        for (const path of paths) {
          const asset = await ask(page, { path });
          assert.equal(asset.status, 200, path);
          assert.match(asset.body, /uplot/);
          assert.match(asset.headers.get("cache-control") ?? "", /immutable/);
        }
        // It starts its own processes.
        const { pid, minor } = disk;
        await untilBody(
          page.port,
          `/disks/${pid}/${minor}`,
          /aria-labelledby="chain-drawing-title/,
        );
      } finally {
        const { code, errors } = await page.end();
        assert.deepEqual([code, errors], [0, ""]);
      }
    }),
});
