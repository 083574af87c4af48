import type { Qcow2Image } from "./image/image.ts";
import type { References } from "./references.ts";

/**
 * Gives the room of clusters without references back to the file system: the file is cut, and gets
 * holes. The reference counts say by now that they are free, and are durable.
 */
export function giveBack(
  { file, geometry: { clusterBytes } }: Qcow2Image,
  references: References,
): void {
  if (file.isBlockDevice) return;
  const { end } = references;
  if (end * clusterBytes < file.sizeBytes()) file.truncate(end * clusterBytes);
  for (let cluster = 0; cluster < end;) {
    const first = cluster;
    while (cluster < end && references.of(cluster) === 0) cluster++;
    const lengthBytes = (cluster - first) * clusterBytes;
    if (lengthBytes > 0 && !file.punchHole(first * clusterBytes, lengthBytes)) break;
    while (cluster < end && references.of(cluster) > 0) cluster++;
  }
  file.sync();
}
