/** Addresses and port as they are written: `*:10809`, `127.0.0.1:10809,[::1]:10809`. */
export function listenText(addresses: readonly string[], port: number): string {
  if (addresses.length === 0) return `*:${port}`;
  return addresses
    .map((address) => address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`)
    .join(",");
}
