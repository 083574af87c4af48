/** The largest form, and how long it may take to arrive. */
const MOST_FORM_BYTES = 8192;
const FORM_MS = 10_000;

async function readBytes(
  reader: ReadableStreamDefaultReader<Uint8Array>,
): Promise<Uint8Array<ArrayBuffer> | null> {
  const bytes = new Uint8Array(MOST_FORM_BYTES);
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return bytes.subarray(0, length);
    if (length + value.length > MOST_FORM_BYTES) return null;
    bytes.set(value, length);
    length += value.length;
  }
}

/** The fields of a form; null for what is none, is too large, or does not arrive. */
export async function readForm(request: Request): Promise<URLSearchParams | null> {
  const type = request.headers.get("content-type") ?? "";
  if (!/^application\/x-www-form-urlencoded(?:;|$)/i.test(type) || request.body === null) {
    return null;
  }
  const reader = request.body.getReader();
  let timer: number | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), FORM_MS);
  });
  try {
    const bytes = await Promise.race([readBytes(reader), late]);
    return bytes === null ? null : new URLSearchParams(new TextDecoder().decode(bytes));
  } catch {
    // The client has gone.
    return null;
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {});
  }
}
