/**
 * `src/tls`: what an administrator says of TLS, for both ends: where certificates and keys are, with
 * the names that nbdkit and libnbd have for the files, and what is asked of the peer. It must not use
 * a socket, and must not know NBD.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { pathExists } from "../../ffi/paths.ts";
import { type TlsCertificates, TlsContext, type TlsCredentials } from "../../ffi/tls_context.ts";
import { findPreSharedKey, requireKeyFile } from "./psk_file.ts";

/** Whether a server has TLS: never, when a client asks for it, or always. */
export const TLS_MODES = ["off", "on", "require"] as const;
/** One of `TLS_MODES`. */
export type TlsMode = (typeof TLS_MODES)[number];

/** Where certificates are, unless another folder is named. */
export const TLS_CERTIFICATES_FOLDER = "/etc/blktap/tls";

/** How a server proves itself, and what it asks of its clients. */
export interface ServerTls {
  readonly mode: TlsMode;
  /** The folder of the certificates; null for keys. */
  readonly certificates: string | null;
  /** The file of the keys; null for certificates. */
  readonly psk: string | null;
  /** Whether a client must have a certificate of the authority in the folder. */
  readonly verifyPeer: boolean;
}

/** How a client proves itself, and what it trusts. */
export interface ClientTls {
  readonly certificates: string | null;
  readonly psk: string | null;
  /** The name that goes with a key. */
  readonly username: string;
  /** The name that the server's certificate must have; null for the host that is connected to. */
  readonly hostname: string | null;
  /** Whether the server's certificate is checked. */
  readonly verifyPeer: boolean;
}

/** `BLKTAP_KERNEL_TLS=off` keeps TLS in this process. */
function kernelChoice(): { mayUseKernel: boolean } {
  return { mayUseKernel: Deno.env.get("BLKTAP_KERNEL_TLS") !== "off" };
}

function serverCertificates(folder: string, verifyPeer: boolean): TlsCertificates {
  const revoked = `${folder}/ca-crl.pem`;
  return {
    authorities: verifyPeer ? `${folder}/ca-cert.pem` : null,
    ...(verifyPeer && pathExists(revoked) ? { revoked } : {}),
    own: { certificate: `${folder}/server-cert.pem`, key: `${folder}/server-key.pem` },
    verifyPeer,
  };
}

function clientCertificates(folder: string | null, verifyPeer: boolean): TlsCertificates {
  const there = folder ?? TLS_CERTIFICATES_FOLDER;
  const authorities = `${there}/ca-cert.pem`;
  const certificate = `${there}/client-cert.pem`;
  const revoked = `${there}/ca-crl.pem`;
  // Without a folder that was named, the authorities of the system are trusted.
  const hasAuthorities = folder !== null || pathExists(authorities);
  return {
    authorities: hasAuthorities ? authorities : null,
    ...(verifyPeer && hasAuthorities && pathExists(revoked) ? { revoked } : {}),
    ...(pathExists(certificate) ? { own: { certificate, key: `${there}/client-key.pem` } } : {}),
    verifyPeer,
  };
}

/** The files of a server's certificates; none for keys, which are read for each connection. */
export function serverFiles({ certificates, psk }: ServerTls): string[] {
  if (psk !== null) return [];
  const folder = certificates ?? TLS_CERTIFICATES_FOLDER;
  return ["server-cert.pem", "server-key.pem", "ca-cert.pem", "ca-crl.pem"]
    .map((name) => `${folder}/${name}`);
}

/**
 * What the connections of a server have in common. Throws `SystemError`: ENOENT without OpenSSL or a
 * file, EINVAL for a file that is not valid.
 */
export function serverContext({ certificates, psk, verifyPeer }: ServerTls): TlsContext {
  if (psk === null) {
    const folder = certificates ?? TLS_CERTIFICATES_FOLDER;
    return new TlsContext("server", serverCertificates(folder, verifyPeer), kernelChoice());
  }
  if (certificates !== null || verifyPeer) {
    const hint = "keys and certificates exclude each other";
    throw new SystemError(Errno.EINVAL, `Cannot use TLS with the keys of ${psk} (${hint})`);
  }
  requireKeyFile(psk);
  const keys = { find: (identity: string) => findPreSharedKey(psk, identity) };
  return new TlsContext("server", keys, kernelChoice());
}

function clientCredentials(
  { certificates, psk, username, verifyPeer }: ClientTls,
): TlsCredentials {
  if (psk === null) return clientCertificates(certificates, verifyPeer);
  requireKeyFile(psk);
  const key = findPreSharedKey(psk, username);
  if (key === null) {
    const named = username === "" ? "no name of a key is given (tls-username)" : null;
    if (named !== null) throw new SystemError(Errno.ENOKEY, `Cannot use TLS (${named})`);
    throw new SystemError(Errno.ENOKEY, `Cannot use TLS (${psk} has no key for ${username})`);
  }
  key.release();
  return { identity: username, find: () => findPreSharedKey(psk, username) };
}

/** As `serverContext`, for a client. ENOKEY when the file has no key for its name. */
export function clientContext(tls: ClientTls): TlsContext {
  return new TlsContext("client", clientCredentials(tls), kernelChoice());
}

/** What of the settings of a server is no setting; null when all are. */
export function parseServerTls(value: unknown): ServerTls | null {
  if (typeof value !== "object" || value === null) return null;
  const { mode: named, certificates, psk, verifyPeer }: Partial<Record<keyof ServerTls, unknown>> =
    value;
  const mode = TLS_MODES.find((known) => known === named);
  if (mode === undefined || typeof verifyPeer !== "boolean") return null;
  if (typeof certificates !== "string" && certificates !== null) return null;
  if (typeof psk !== "string" && psk !== null) return null;
  return { mode, certificates, psk, verifyPeer };
}
