import assert from "node:assert/strict";
import { type ListedDevice, parseDeviceList } from "../../src/control/client/device_list.ts";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";

const PLAIN = { ...OPEN_DEFAULTS, device: "auto", auto: true, overTcp: {} };

function parse(...lines: string[]): { devices: ListedDevice[]; faults: string[] } {
  const { devices, faults } = parseDeviceList(lines.join("\n"));
  return { devices, faults: faults.map(({ line, reason }) => `${line}: ${reason}`) };
}

Deno.test("list of devices: blanks, comments and options", () => {
  const { devices, faults } = parse(
    "# a comment",
    "",
    "data vhd:/srv/data.vhd",
    "\t two.2\t log:bc:aio:/srv/a\\040b\\134  ro,noauto,device=ublk,queue=libaio,timeout=60,retry=none,no-direct ",
    "vault  vhd:/v  defaults,key-file=/etc/a\\054b",
    "slow   vhd:/s  read-iops=100,write-bps=5000000,burst=1000",
    "far vhd:/f listen=[::1]:7,export-name=a\\054b,tls=on,tls-certificates=/p,tls-verify-peer,max-clients=3",
  );
  assert.deepEqual(faults, []);
  assert.deepEqual(devices, [
    { line: 3, name: "data", image: "vhd:/srv/data.vhd", ...PLAIN },
    {
      ...PLAIN,
      line: 4,
      name: "two.2",
      image: "log:bc:aio:/srv/a b\\",
      ...PLAIN,
      device: "ublk",
      queue: "libaio",
      readOnly: true,
      direct: false,
      requestTimeoutSeconds: 60,
      retry: "none",
      auto: false,
    },
    { line: 5, name: "vault", image: "vhd:/v", ...PLAIN, keyFile: "/etc/a,b" },
    {
      line: 6,
      name: "slow",
      image: "vhd:/s",
      ...PLAIN,
      limits: { ...PLAIN.limits, readIops: 100, writeBps: 5_000_000, burstMs: 1000 },
    },
    {
      line: 7,
      name: "far",
      image: "vhd:/f",
      ...PLAIN,
      overTcp: {
        listen: { host: "::1", port: 7 },
        exportName: "a,b",
        tls: "on",
        tlsCertificates: "/p",
        tlsVerifyPeer: true,
        maxClients: 3,
      },
    },
  ]);
});

Deno.test("list of devices: a line that makes no sense is told of, others are read", () => {
  const { devices, faults } = parse(
    "alone",
    "../up vhd:/a",
    ".hidden vhd:/a",
    "control vhd:/a",
    "a /srv/disk.vhd",
    "a vhd:/a rw",
    "a vhd:/a ro=1",
    "a vhd:/a device",
    "a vhd:/a device=floppy",
    "a vhd:/a queue=fifo",
    "a vhd:/a timeout=65536",
    "a vhd:/a retry=some",
    "a vhd:/a key-file=key",
    "a vhd:/a ro 0 0",
    "a vhd:/a",
    "a vhd:/b",
    "b vhd:/b read-iops=10K",
    "b vhd:/b burst=1",
    "b vhd:/b listen=a:b",
    "b vhd:/b tls=maybe",
    "b vhd:/b tls-psk=keys",
    "b vhd:/b tls-verify-peer=yes",
    "b vhd:/b max-clients=0",
  );
  assert.deepEqual(devices, [{ line: 15, name: "a", image: "vhd:/a", ...PLAIN }]);
  assert.deepEqual(faults, [
    "1: an image, such as vhd:/srv/disk.vhd, must follow the name",
    "2: '../up' cannot be a name under /dev/blktap",
    "3: '.hidden' cannot be a name under /dev/blktap",
    "4: 'control' cannot be a name under /dev/blktap",
    "5: '/srv/disk.vhd' is no image, such as vhd:/srv/disk.vhd",
    "6: there is no option 'rw'",
    "7: option ro takes no value",
    "8: option device wants a value",
    "9: device must be one of none, auto, blktap2, ublk, nbd",
    "10: queue must be one of auto, libaio, io_uring",
    "11: timeout must be a whole number of seconds up to 65535",
    "12: retry must be one of all, transient, none",
    "13: key-file must be a whole path",
    "14: nothing must follow the options, '0 0' does",
    "16: there is a disk of the name a above",
    "17: a limit must be a whole number",
    "18: a burst must be from 10 to 3600000 milliseconds",
    "19: listen must be HOST:PORT, such as :10809",
    "20: tls must be one of off, on, require",
    "21: tls-psk must be a whole path",
    "22: option tls-verify-peer takes no value",
    "23: a number of clients must be from 1 to 512",
  ]);
});

Deno.test("list of devices: the one that is installed has no disks, and its examples are right", () => {
  const path = new URL("../../packaging/devices", import.meta.url);
  const text = Deno.readTextFileSync(path);
  assert.deepEqual(parseDeviceList(text), { devices: [], faults: [] });
  const examples = text.slice(text.indexOf("# Examples:\n") + 12).replaceAll(/^#/gm, "");
  const { devices, faults } = parseDeviceList(examples);
  assert.deepEqual(faults, []);
  assert.deepEqual(devices.map(({ name }) => name), ["data", "install", "shared", "vault"]);
});
