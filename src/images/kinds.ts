import type { ImageKind } from "./kind.ts";
import { qcow2Kind } from "./qcow2_kind.ts";
import { qcowKind } from "./qcow_kind.ts";
import { rawKind } from "./raw_kind.ts";
import { vhdKind } from "./vhd_kind.ts";
import { vhdxKind } from "./vhdx_kind.ts";

const KINDS: readonly ImageKind[] = [rawKind, qcowKind, qcow2Kind, vhdKind, vhdxKind];

/** What can be done with images of a type; null for types that nothing is known of. */
export function kindOf(type: string): ImageKind | null {
  return KINDS.find((kind) => kind.type === type) ?? null;
}

/** The types that are known, for messages. */
export function kindNames(): string {
  return KINDS.map(({ type }) => type).join(", ");
}
