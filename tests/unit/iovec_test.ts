import assert from "node:assert/strict";
import { Arena } from "../../ffi/memory.ts";
import { IOVEC_BYTES, putIovec, putMsghdr, shortenIovec } from "../../ffi/sockets.ts";

Deno.test("iovecs and message headers name bytes of I/O memory by their addresses", () => {
  const arena = new Arena(4096);
  const { view, address, sector } = arena;
  putIovec(view, 64, sector, 512, 700);
  putMsghdr(view, 0, sector, 64, 1);
  assert.equal(view.getBigUint64(64, true), BigInt(address + 512));
  assert.equal(view.getBigUint64(72, true), 700n);
  assert.equal(view.getBigUint64(16, true), BigInt(address + 64));
  assert.equal(view.getBigUint64(24, true), 1n);
  arena.release();
});

Deno.test("an iovec is shortened across a multiple of 4 GiB", () => {
  const view = new DataView(new ArrayBuffer(IOVEC_BYTES));
  for (const start of [0x7fff_ffff_f000n, 0x7f12_ffff_fff8n, 0x7f12_0000_0000n]) {
    for (const bytes of [1, 8, 4096, 131_072]) {
      view.setBigUint64(0, start, true);
      view.setBigUint64(8, 200_000n, true);
      shortenIovec(view, 0, bytes);
      assert.equal(view.getBigUint64(0, true), start + BigInt(bytes));
      assert.equal(view.getBigUint64(8, true), 200_000n - BigInt(bytes));
    }
  }
});
