import assert from "node:assert/strict";
import { blktapMinorOf, blktapNode, KernelBlktap } from "../../ffi/blktap.ts";

/** Whether this process may create device nodes. */
function mayMakeNodes(): boolean {
  const folder = Deno.makeTempDirSync();
  try {
    const args = ["-m", "600", `${folder}/null`, "c", "1", "3"];
    return new Deno.Command("mknod", { args, stderr: "null" }).outputSync().success;
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

const ignore = !mayMakeNodes();
const suffix = ignore ? " (skipped: this process may not make device nodes)" : "";

Deno.test("a node of the driver has its tap's number", () => {
  assert.equal(blktapNode(12), "/dev/xen/blktap-2/tapdev12");
  assert.equal(blktapMinorOf(blktapNode(12)), 12);
  for (const other of ["/dev/ublkb12", "/dev/xen/blktap-2/tapdev", "/dev/xen/blktap-2/tapdevx"]) {
    assert.equal(blktapMinorOf(other), -1);
  }
});

Deno.test(`nodes that udev has not made are made, and go again${suffix}`, { ignore }, () => {
  const tap = { ringMajor: 246, blockMajor: 253, minor: 70_001 };
  const driver = new KernelBlktap();
  const path = driver.makeNode(tap);
  const other = new KernelBlktap();
  try {
    const made = Deno.lstatSync(path);
    assert.ok(made.isBlockDevice);
    // The kernel's encoding of 253:70001.
    assert.equal(made.rdev, 0x71 | 253 << 8 | 0x11100 << 12);
    assert.equal((made.mode ?? 0) & 0o777, 0o600);
    // An existing node, such as one of udev, is kept unchanged.
    assert.equal(other.makeNode(tap), path);
    assert.equal(Deno.lstatSync(path).ino, made.ino);
    other.removeNodes(tap);
    assert.equal(Deno.lstatSync(path).ino, made.ino);
    // A node of an earlier load of the driver refers to no device.
    assert.equal(other.makeNode({ ...tap, blockMajor: 252 }), path);
    assert.equal(Deno.lstatSync(path).rdev, 0x71 | 252 << 8 | 0x11100 << 12);
  } finally {
    driver.removeNodes(tap);
  }
  assert.throws(() => Deno.lstatSync(path), Deno.errors.NotFound);
});

Deno.test("a kernel without the driver says so", () => {
  const missing = new KernelBlktap().missing();
  if (missing !== null) assert.match(missing, /^(the kernel has no blktap2 driver|Cannot open )/);
});
