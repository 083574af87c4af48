/**
 * What the TLS connections of a server, or of a client, have in common: certificates or keys, and
 * what is asked of the peer. TLS 1.2 is the least; nothing is resumed, compressed or renegotiated.
 *
 * @module
 */
import { Errno, SystemError } from "./errno.ts";
import { closeFile, O_RDONLY, openFile } from "./files.ts";
import { cString, memoryAt, pointerAddress } from "./libc.ts";
import { kernelCanFollow, type Libssl, libssl, takeSslErrors } from "./libssl.ts";
import { hideMemory } from "./process.ts";
import type { Secret } from "./secret.ts";

const SSL_CTRL_MODE = 33;
const SSL_CTRL_SET_SESS_CACHE_MODE = 44;
const SSL_CTRL_CLEAR_MODE = 78;
const SSL_CTRL_SET_MIN_PROTO_VERSION = 123;
const TLS1_2_VERSION = 0x0303;
const SSL_MODE_ENABLE_PARTIAL_WRITE = 0x1;
const SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER = 0x2;
/** Without this mode a read returns after each record without data, so that a peer cannot hold it. */
const SSL_MODE_AUTO_RETRY = 0x4;
const SSL_OP_ENABLE_KTLS = 2 ** 3;
const SSL_OP_NO_TICKET = 2 ** 14;
const SSL_OP_NO_COMPRESSION = 2 ** 17;
const SSL_OP_CIPHER_SERVER_PREFERENCE = 2 ** 22;
const SSL_OP_NO_RENEGOTIATION = 2 ** 30;
/** Of TLS 1.3. OpenSSL would choose ChaCha20 for keys, which processors with AES do more slowly. */
const CIPHERS = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
const SSL_VERIFY_PEER = 1;
const SSL_VERIFY_FAIL_IF_NO_PEER_CERT = 2;
const SSL_FILETYPE_PEM = 1;
const X509_V_FLAG_CRL_CHECK = 0x4;

/** Certificates, as files in PEM format. */
export interface TlsCertificates {
  /** The authorities that the peer's certificate may come from; null for those of the system. */
  readonly authorities: string | null;
  /** Certificates that were revoked. */
  readonly revoked?: string;
  /** The own certificate and its private key; a client may have none. */
  readonly own?: { readonly certificate: string; readonly key: string };
  /** Whether the peer must have a certificate that is valid. */
  readonly verifyPeer: boolean;
}

/** Keys that both sides know. */
export interface TlsKeys {
  /** The name that a client says; a server has none. */
  readonly identity?: string;
  /** The key of a name, which the caller releases; null when there is none. */
  find(identity: string): Secret | null;
}

/** What both ends prove themselves by. */
export type TlsCredentials = TlsCertificates | TlsKeys;

/** Parameters of the callbacks; both return the bytes of the key. */
const SERVER_CALLBACK = ["pointer", "pointer", "pointer", "u32"] as const;
const CLIENT_CALLBACK = ["pointer", "pointer", "pointer", "u32", "pointer", "u32"] as const;

/** Copies the key of a name to where OpenSSL wants it; returns its bytes, 0 when there is none. */
function putKey(
  keys: TlsKeys,
  identity: string,
  to: Deno.PointerValue,
  mostBytes: number,
): number {
  const secret = keys.find(identity);
  if (secret === null) return 0;
  try {
    const { bytes } = secret;
    if (bytes.length > mostBytes) return 0;
    new Uint8Array(memoryAt(pointerAddress(to), bytes.length)).set(bytes);
    return bytes.length;
  } finally {
    secret.release();
  }
}

/** The settings of many connections. */
export class TlsContext {
  readonly library: Libssl;
  readonly role: "server" | "client";
  /** Whether the kernel may encrypt and decrypt where it can. */
  readonly mayUseKernel: boolean;
  /** For `SSL_new`. */
  readonly pointer: Deno.PointerValue;
  #callback: { close(): void } | null = null;

  /**
   * Opens libssl, and reads the certificates.
   *
   * @throws {SystemError} ENOENT without libssl or a file; EINVAL for a file that is not valid.
   */
  constructor(
    role: "server" | "client",
    credentials: TlsCredentials,
    { mayUseKernel = true }: { mayUseKernel?: boolean } = {},
  ) {
    this.library = libssl();
    this.role = role;
    this.mayUseKernel = mayUseKernel &&
      kernelCanFollow(Number(this.library.OpenSSL_version_num()));
    hideMemory();
    this.pointer = this.library.SSL_CTX_new(this.library.TLS_method());
    if (this.pointer === null) {
      throw new SystemError(Errno.ENOMEM, `Cannot use TLS (${takeSslErrors(this.library)})`);
    }
    try {
      this.#setUp();
      if ("find" in credentials) this.#useKeys(credentials);
      else this.#useCertificates(credentials);
      // What OpenSSL tried and did without.
      this.library.ERR_clear_error();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #setUp(): void {
    const { library, pointer } = this;
    const options = SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
      SSL_OP_CIPHER_SERVER_PREFERENCE;
    library.SSL_CTX_set_options(pointer, options | (this.mayUseKernel ? SSL_OP_ENABLE_KTLS : 0));
    const mode = SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER;
    library.SSL_CTX_ctrl(pointer, SSL_CTRL_MODE, mode, null);
    library.SSL_CTX_ctrl(pointer, SSL_CTRL_CLEAR_MODE, SSL_MODE_AUTO_RETRY, null);
    library.SSL_CTX_ctrl(pointer, SSL_CTRL_SET_SESS_CACHE_MODE, 0, null);
    library.SSL_CTX_set_num_tickets(pointer, 0);
    if (library.SSL_CTX_set_ciphersuites(pointer, cString(CIPHERS)) !== 1) {
      throw this.#failure("Cannot choose ciphers");
    }
    const least = SSL_CTRL_SET_MIN_PROTO_VERSION;
    if (library.SSL_CTX_ctrl(pointer, least, TLS1_2_VERSION, null) !== 1n) {
      throw this.#failure("Cannot set the least version of TLS");
    }
  }

  #failure(what: string): SystemError {
    return new SystemError(Errno.EINVAL, `${what} (OpenSSL says: ${takeSslErrors(this.library)})`);
  }

  #useCertificates({ authorities, revoked, own, verifyPeer }: TlsCertificates): void {
    const { library, pointer } = this;
    if (own !== undefined) this.#useOwn(own.certificate, own.key);
    if (authorities !== null) this.#load(authorities);
    else if (verifyPeer) library.SSL_CTX_set_default_verify_paths(pointer);
    if (revoked !== undefined) {
      this.#load(revoked);
      const store = library.SSL_CTX_get_cert_store(pointer);
      library.X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
    }
    const must = SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    library.SSL_CTX_set_verify(pointer, verifyPeer ? must : 0, null);
  }

  #useOwn(certificate: string, key: string): void {
    const { library, pointer } = this;
    requireReadable(certificate);
    if (library.SSL_CTX_use_certificate_chain_file(pointer, cString(certificate)) !== 1) {
      throw this.#failure(`Cannot use the certificate ${certificate}`);
    }
    requireReadable(key);
    if (library.SSL_CTX_use_PrivateKey_file(pointer, cString(key), SSL_FILETYPE_PEM) !== 1) {
      throw this.#failure(`Cannot use the private key ${key} with ${certificate}`);
    }
    if (library.SSL_CTX_check_private_key(pointer) !== 1) {
      throw this.#failure(`Cannot use the private key ${key} with ${certificate}`);
    }
  }

  /** Certificates of authorities, or a list of revoked ones. */
  #load(path: string): void {
    requireReadable(path);
    const { library, pointer } = this;
    if (library.SSL_CTX_load_verify_locations(pointer, cString(path), null) !== 1) {
      throw this.#failure(`Cannot use the certificates of ${path}`);
    }
  }

  #useKeys(keys: TlsKeys): void {
    const { library, pointer } = this;
    if (this.role === "server") {
      const callback = new Deno.UnsafeCallback(
        { parameters: SERVER_CALLBACK, result: "u32" },
        (_ssl, identity, psk, most) => {
          try {
            if (identity === null) return 0;
            return putKey(keys, Deno.UnsafePointerView.getCString(identity), psk, most);
          } catch {
            // Nothing may be thrown through OpenSSL. The client is refused.
            return 0;
          }
        },
      );
      this.#callback = callback;
      return library.SSL_CTX_set_psk_server_callback(pointer, callback.pointer);
    }
    const name = cString(keys.identity ?? "");
    const callback = new Deno.UnsafeCallback(
      { parameters: CLIENT_CALLBACK, result: "u32" },
      (_ssl, _hint, identity, mostName, psk, most) => {
        try {
          if (name.length > mostName) return 0;
          new Uint8Array(memoryAt(pointerAddress(identity), name.length)).set(name);
          return putKey(keys, keys.identity ?? "", psk, most);
        } catch {
          return 0;
        }
      },
    );
    this.#callback = callback;
    library.SSL_CTX_set_psk_client_callback(pointer, callback.pointer);
    // A server that proves itself by a certificate is not the one that knows the key.
    library.SSL_CTX_set_verify(pointer, SSL_VERIFY_PEER, null);
  }

  /** Frees it. Its connections must be closed. */
  close(): void {
    this.library.SSL_CTX_free(this.pointer);
    this.#callback?.close();
    this.#callback = null;
  }
}

/** Opens a file and closes it. Throws `SystemError`, which says more than OpenSSL does. */
function requireReadable(path: string): void {
  closeFile(openFile(path, O_RDONLY));
}
