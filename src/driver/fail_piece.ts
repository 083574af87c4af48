import type { RequestSink } from "./driver.ts";
import { PieceKind, type PieceTable } from "./pieces.ts";

/** Ends a piece that waited with an error, and gives its record back. */
export function failPiece(
  pieces: PieceTable,
  sink: RequestSink,
  piece: number,
  errno: number,
): void {
  const slot = pieces.slot[piece];
  const count = pieces.count[piece];
  const isStatus = pieces.kind[piece] === PieceKind.Status;
  pieces.give(piece);
  if (isStatus) sink.statusDone(slot, errno);
  else sink.pieceDone(slot, count, errno);
}
