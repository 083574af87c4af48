import { messageOf } from "../../../ffi/errno.ts";
import { allocatedBlocks } from "../../vhd/format/bat.ts";
import { openChain } from "../../vhd/image/chain.ts";
import { resolveParent, unresolvedParent } from "../../vhd/image/parent.ts";
import type { VhdImage } from "../../vhd/image/image.ts";
import { formatUuid } from "../../vhd/format/uuid.ts";
import { expectedErrno } from "../subcommands/command.ts";

/** All facts about an image, for `--json`, and the exit status: the first error, or 0. */
export function factsOf(
  image: VhdImage,
  { physicalSizeBytes }: { physicalSizeBytes: number },
): { facts: Record<string, unknown>; status: number } {
  const errors: string[] = [];
  let status = 0;
  const attempt = <T>(fact: () => T): T | null => {
    try {
      return fact();
    } catch (error) {
      if (status === 0) status = expectedErrno(error);
      if (!errors.includes(messageOf(error))) errors.push(messageOf(error));
      return null;
    }
  };
  const isFixed = image.type === "fixed";
  const facts = {
    path: image.path,
    type: image.type,
    uuid: formatUuid(image.footer.uuid),
    virtualSizeBytes: image.sizeBytes,
    physicalSizeBytes,
    blockSizeBytes: isFixed ? null : image.blockSizeBytes,
    allocatedBlocks: isFixed ? null : allocatedBlocks(image.bat),
    maxVirtualSizeBytes: image.header === null
      ? image.sizeBytes
      : image.header.maxBatEntries * image.blockSizeBytes,
    parent: image.parent && attempt(() => resolveParent(image, { anyUuid: true })),
    parentAsStored: image.parent && unresolvedParent(image),
    chainDepth: attempt(() => depthOf(image)),
    hidden: image.footer.hidden,
    marker: image.batmap?.header.marker ?? 0,
    savedState: image.savedState,
    encrypted: image.batmap?.header.keyhash.cookie === 1,
  };
  return { facts: errors.length === 0 ? facts : { ...facts, errors }, status };
}

/** The number of layers of an image's chain, from the footer that the image was opened with. */
export function depthOf({ path, footerSource }: VhdImage): number {
  const chain = openChain(path, {
    lenient: true,
    ignoreDisabled: true,
    ignoreParentUuid: true,
    useBackupFooter: footerSource === "backup",
  });
  chain.close();
  return chain.depth;
}
