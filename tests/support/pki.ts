/**
 * Certificates and keys for tests of TLS, made by openssl(1), with the names that nbdkit has for the
 * files.
 *
 * @module
 */
import { runOk } from "./tools.ts";

/** A file of keys. */
export const PSK_TEXT =
  "bob:ffeeddccbbaa99887766554433221100\nalice:00112233445566778899aabbccddeeff\n";

const EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

async function sign(
  folder: string,
  name: string,
  { altNames, notAfter }: { altNames: string; notAfter?: string },
): Promise<void> {
  const openssl = (...args: string[]): Promise<string> => runOk("openssl", args, { cwd: folder });
  await openssl("req", ...EC, "-subj", `/CN=${name}`, "-keyout", `${name}-key.pem`, "-out", "r");
  Deno.writeTextFileSync(`${folder}/x`, `subjectAltName=${altNames}\n`);
  const until = notAfter === undefined ? ["-days", "2"] : ["-days", notAfter];
  await openssl(
    ...["x509", "-req", "-in", "r", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"],
    ...["-CAcreateserial", ...until, "-extfile", "x", "-out", `${name}-cert.pem`],
  );
}

/** How the certificates of a folder are. */
export interface PkiOptions {
  /** Names and addresses of the server's certificate. */
  readonly altNames?: string;
  /** Whether both certificates have expired. */
  readonly isExpired?: boolean;
}

/** Makes a folder with an authority, and a certificate each for a server and a client. */
export async function makePki(
  folder: string,
  { altNames = "DNS:localhost,IP:127.0.0.1,IP:::1", isExpired = false }: PkiOptions = {},
): Promise<string> {
  Deno.mkdirSync(folder);
  await runOk("openssl", [
    ...["req", "-x509", ...EC, "-days", "2", "-subj", "/CN=blktap tests"],
    ...["-keyout", "ca-key.pem", "-out", "ca-cert.pem"],
  ], { cwd: folder });
  const notAfter = isExpired ? "-1" : undefined;
  await sign(folder, "server", { altNames, notAfter });
  await sign(folder, "client", { altNames: "DNS:client", notAfter });
  return folder;
}
