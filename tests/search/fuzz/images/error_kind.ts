/**
 * The kind of a message: without numbers, quoted values and paths. Errors of one kind probably have one
 * cause.
 */
export function messageKind(message: string): string {
  return message.split("\n")[0].replaceAll(/"[^"]*"/g, '""').replaceAll(/\/[^\s:,;)]*/g, "/")
    .replaceAll(/0x[0-9a-f]+|\d+/g, "0").slice(0, 200);
}

/** The kind of what was thrown. */
export function errorKind(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return `${error.name}: ${messageKind(error.message)}`;
}
