import assert from "node:assert/strict";
import {
  Cmd,
  exportInfo,
  infoContent,
  metaContent,
  NbdClient,
  Opt,
  packed,
  Rep,
} from "../support/nbd_client.ts";
import { assertBytes, DISK_BYTES, FLAGS, nbdTest } from "../support/nbd_disks.ts";

const MIB = 1024 * 1024;
const BASE_ALLOCATION = "base:allocation";
const HOLE_AND_ZERO = 3;

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

nbdTest(
  "EXPORT_NAME answers with size and flags, padded unless both sides say no",
  async ({ vhd }) => {
    for (const [clientFlags, padding] of [[3, 0], [1, 124]] as const) {
      using client = await NbdClient.connect(vhd.socket);
      assert.equal(await client.greet(clientFlags), 3, "fixed newstyle, no zeroes");
      await client.option(Opt.ExportName, new TextEncoder().encode("any name"));
      const view = await client.receive(10 + padding);
      assert.equal(Number(view.getBigUint64(0)), DISK_BYTES);
      assert.equal(view.getUint16(8), FLAGS);
      for (let i = 10; i < view.byteLength; i++) assert.equal(view.getUint8(i), 0);
      assertBytes(await client.read(0, 4096), new Uint8Array(4096));
      await client.disconnect();
    }
  },
);

nbdTest("LIST names the one export, which has no name", async ({ vhd }) => {
  using client = await NbdClient.connect(vhd.socket);
  await client.greet();
  const replies = await client.negotiate(Opt.List);
  assert.deepEqual(replies.map(({ type }) => type), [Rep.Server, Rep.Ack]);
  assert.deepEqual([...replies[0].data], [0, 0, 0, 0]);
  const [refusal] = await client.negotiate(Opt.List, packed([4, 1]));
  assert.equal(refusal.type, Rep.ErrInvalid);
  client.close();
});

nbdTest(
  "INFO tells size, flags, block sizes and, if asked, the name; GO goes on",
  async ({ vhd }) => {
    using client = await NbdClient.connect(vhd.socket);
    await client.greet();
    const replies = await client.acknowledged(Opt.Info, infoContent("disk", [1, 3, 77]));
    assert.deepEqual(exportInfo(replies), { sizeBytes: DISK_BYTES, flags: FLAGS });
    const infos = new Map(
      replies.slice(0, -1).map(({ type, data }) => {
        assert.equal(type, Rep.Info);
        return [data[0] * 256 + data[1], data.subarray(2)];
      }),
    );
    assert.equal(text(infos.get(1) ?? new Uint8Array(0)), "disk");
    const sizes = infos.get(3) ?? new Uint8Array(0);
    assertBytes(sizes, packed([4, 512], [4, 4096], [4, 32 * MIB]));
    // The negotiation continues after INFO; requests follow GO.
    await client.acknowledged(Opt.Go, infoContent("another"));
    await client.flush();
    await client.disconnect();
  },
);

nbdTest("ABORT is acknowledged and ends the connection", async ({ vhd }) => {
  using client = await NbdClient.connect(vhd.socket);
  await client.greet();
  await client.acknowledged(Opt.Abort);
  assert.ok(await client.hasHungUp());
});

nbdTest(
  "options that it does not know are refused, and the negotiation goes on",
  async ({ vhd }) => {
    using client = await NbdClient.connect(vhd.socket);
    await client.greet();
    for (const option of [Opt.StartTls, 4, 11, 999, 0xffffffff]) {
      const [refusal] = await client.negotiate(option, new Uint8Array(100));
      assert.equal(refusal.type, Rep.ErrUnsup, `option ${option}`);
    }
    await client.acknowledged(Opt.Go, infoContent(""));
    await client.flush();
  },
);

nbdTest(
  "options with wrong content are refused as invalid, longer ones as too big",
  async ({ vhd }) => {
    using client = await NbdClient.connect(vhd.socket);
    await client.greet();
    const wrong: [number, Uint8Array][] = [
      [Opt.Info, new Uint8Array(0)],
      [Opt.Info, packed([4, 1000], [2, 0])],
      [Opt.Info, packed([4, 0xffffffff], [2, 0])],
      [Opt.Go, packed([4, 0], [2, 5], [2, 1])],
      [Opt.Go, packed([4, 0], [2, 0], [2, 1])],
      [Opt.StructuredReply, packed([1, 1])],
      [Opt.SetMetaContext, metaContent("", [BASE_ALLOCATION])],
    ];
    for (const [option, content] of wrong) {
      const [refusal] = await client.negotiate(option, content);
      assert.equal(refusal.type, Rep.ErrInvalid, `option ${option}: ${content}`);
    }
    // 64 MiB of zeros: refused by the header and discarded.
    const [tooBig] = await client.negotiate(Opt.Info, new Uint8Array(64 * MIB));
    assert.equal(tooBig.type, Rep.ErrTooBig);
    await client.acknowledged(Opt.StructuredReply);
    const [manyQueries] = await client.negotiate(
      Opt.SetMetaContext,
      packed([4, 0], [4, 0xffffffff]),
    );
    assert.equal(manyQueries.type, Rep.ErrInvalid);
    await client.acknowledged(Opt.Go, infoContent(""));
    await client.flush();
  },
);

nbdTest("a name of 4096 bytes is the longest, whatever is asked about it", async ({ vhd }) => {
  using client = await NbdClient.connect(vhd.socket);
  await client.greet();
  // The options are sent at once: the replies must not overwrite options that are still unread.
  const longest = infoContent("n".repeat(4096), [1]);
  const tooLong = infoContent("n".repeat(4097), [1]);
  await client.option(Opt.Info, longest);
  await client.option(Opt.Info, tooLong);
  await client.option(Opt.Go, infoContent(""));
  const types: number[] = [];
  while (types.filter((type) => type !== Rep.Info).length < 3) {
    types.push((await client.optionReply()).type);
  }
  assert.deepEqual(types.filter((type) => type !== Rep.Info), [Rep.Ack, Rep.ErrInvalid, Rep.Ack]);
  await client.flush();
});

nbdTest(
  "meta contexts are listed and set: base:allocation is the one there is",
  async ({ vhd }) => {
    using client = await NbdClient.connect(vhd.socket);
    await client.greet();
    await client.acknowledged(Opt.StructuredReply);
    const listed: [string[], boolean][] = [
      [[], true],
      [["base:"], true],
      [[BASE_ALLOCATION], true],
      [["qemu:", "x-none:y"], false],
    ];
    for (const [queries, found] of listed) {
      const replies = await client.acknowledged(Opt.ListMetaContext, metaContent("", queries));
      const names = replies.slice(0, -1).map(({ data }) => text(data.subarray(4)));
      assert.deepEqual(names, found ? [BASE_ALLOCATION] : [], queries.join());
    }
    const none = await client.acknowledged(Opt.SetMetaContext, metaContent("", ["qemu:dirty"]));
    assert.equal(none.length, 1);
    const [set] = await client.acknowledged(
      Opt.SetMetaContext,
      metaContent("", ["qemu:dirty", BASE_ALLOCATION]),
    );
    assert.equal(text(set.data.subarray(4)), BASE_ALLOCATION);
    await client.acknowledged(Opt.Go, infoContent(""));
    const { extents } = await client.do({ command: Cmd.BlockStatus, length: 4096 });
    assert.deepEqual(extents, [[4096, HOLE_AND_ZERO]]);
  },
);
