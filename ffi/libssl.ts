/**
 * OpenSSL's libssl, which is opened with the first connection that uses TLS, and what it uses of
 * libcrypto.
 *
 * @module
 */
import { Errno, SystemError } from "./errno.ts";
import { type Calls, openLibrary } from "./libc.ts";
import { libcrypto, LIBCRYPTO_CHOICES } from "./libcrypto.ts";

const SYMBOLS = {
  // unsigned long OpenSSL_version_num(void); 0xMNN00PP0
  OpenSSL_version_num: { parameters: [], result: "u64" },
  // const SSL_METHOD *TLS_method(void)
  TLS_method: { parameters: [], result: "pointer" },
  // SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
  SSL_CTX_new: { parameters: ["pointer"], result: "pointer" },
  // void SSL_CTX_free(SSL_CTX *ctx)
  SSL_CTX_free: { parameters: ["pointer"], result: "void" },
  // long SSL_CTX_ctrl(SSL_CTX *ctx, int cmd, long larg, void *parg)
  SSL_CTX_ctrl: { parameters: ["pointer", "i32", "i64", "pointer"], result: "i64" },
  // uint64_t SSL_CTX_set_options(SSL_CTX *ctx, uint64_t options)
  SSL_CTX_set_options: { parameters: ["pointer", "u64"], result: "u64" },
  // int SSL_CTX_set_ciphersuites(SSL_CTX *ctx, const char *str)
  SSL_CTX_set_ciphersuites: { parameters: ["pointer", "buffer"], result: "i32" },
  // int SSL_CTX_set_num_tickets(SSL_CTX *ctx, size_t num_tickets)
  SSL_CTX_set_num_tickets: { parameters: ["pointer", "usize"], result: "i32" },
  // int SSL_CTX_use_certificate_chain_file(SSL_CTX *ctx, const char *file)
  SSL_CTX_use_certificate_chain_file: { parameters: ["pointer", "buffer"], result: "i32" },
  // int SSL_CTX_use_PrivateKey_file(SSL_CTX *ctx, const char *file, int type)
  SSL_CTX_use_PrivateKey_file: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  // int SSL_CTX_check_private_key(const SSL_CTX *ctx)
  SSL_CTX_check_private_key: { parameters: ["pointer"], result: "i32" },
  // int SSL_CTX_load_verify_locations(SSL_CTX *ctx, const char *CAfile, const char *CApath)
  SSL_CTX_load_verify_locations: { parameters: ["pointer", "buffer", "pointer"], result: "i32" },
  // int SSL_CTX_set_default_verify_paths(SSL_CTX *ctx)
  SSL_CTX_set_default_verify_paths: { parameters: ["pointer"], result: "i32" },
  // void SSL_CTX_set_verify(SSL_CTX *ctx, int mode, SSL_verify_cb callback)
  SSL_CTX_set_verify: { parameters: ["pointer", "i32", "pointer"], result: "void" },
  // X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *ctx)
  SSL_CTX_get_cert_store: { parameters: ["pointer"], result: "pointer" },
  // int X509_STORE_set_flags(X509_STORE *xs, unsigned long flags)
  X509_STORE_set_flags: { parameters: ["pointer", "u64"], result: "i32" },
  // void SSL_CTX_set_psk_server_callback(SSL_CTX *ctx, SSL_psk_server_cb_func cb)
  SSL_CTX_set_psk_server_callback: { parameters: ["pointer", "pointer"], result: "void" },
  // void SSL_CTX_set_psk_client_callback(SSL_CTX *ctx, SSL_psk_client_cb_func cb)
  SSL_CTX_set_psk_client_callback: { parameters: ["pointer", "pointer"], result: "void" },
  // SSL *SSL_new(SSL_CTX *ctx)
  SSL_new: { parameters: ["pointer"], result: "pointer" },
  // void SSL_free(SSL *ssl)
  SSL_free: { parameters: ["pointer"], result: "void" },
  // long SSL_ctrl(SSL *ssl, int cmd, long larg, void *parg)
  SSL_ctrl: { parameters: ["pointer", "i32", "i64", "buffer"], result: "i64" },
  // int SSL_set1_host(SSL *ssl, const char *host)
  SSL_set1_host: { parameters: ["pointer", "buffer"], result: "i32" },
  // X509_VERIFY_PARAM *SSL_get0_param(SSL *ssl)
  SSL_get0_param: { parameters: ["pointer"], result: "pointer" },
  // int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *param, const char *ipasc)
  X509_VERIFY_PARAM_set1_ip_asc: { parameters: ["pointer", "buffer"], result: "i32" },
  // int SSL_set_fd(SSL *ssl, int fd)
  SSL_set_fd: { parameters: ["pointer", "i32"], result: "i32" },
  // void SSL_set_bio(SSL *ssl, BIO *rbio, BIO *wbio)
  SSL_set_bio: { parameters: ["pointer", "pointer", "pointer"], result: "void" },
  // void SSL_set0_rbio(SSL *ssl, BIO *rbio)
  SSL_set0_rbio: { parameters: ["pointer", "pointer"], result: "void" },
  // void SSL_set0_wbio(SSL *ssl, BIO *wbio)
  SSL_set0_wbio: { parameters: ["pointer", "pointer"], result: "void" },
  // BIO *SSL_get_rbio(const SSL *ssl)
  SSL_get_rbio: { parameters: ["pointer"], result: "pointer" },
  // BIO *SSL_get_wbio(const SSL *ssl)
  SSL_get_wbio: { parameters: ["pointer"], result: "pointer" },
  // void SSL_set_accept_state(SSL *ssl)
  SSL_set_accept_state: { parameters: ["pointer"], result: "void" },
  // void SSL_set_connect_state(SSL *ssl)
  SSL_set_connect_state: { parameters: ["pointer"], result: "void" },
  // int SSL_do_handshake(SSL *ssl)
  SSL_do_handshake: { parameters: ["pointer"], result: "i32" },
  // int SSL_read(SSL *ssl, void *buf, int num)
  SSL_read: { parameters: ["pointer", "pointer", "i32"], result: "i32" },
  // int SSL_write(SSL *ssl, const void *buf, int num)
  SSL_write: { parameters: ["pointer", "pointer", "i32"], result: "i32" },
  // int SSL_pending(const SSL *ssl); bytes of the record that is being read
  SSL_pending: { parameters: ["pointer"], result: "i32" },
  // int SSL_shutdown(SSL *ssl)
  SSL_shutdown: { parameters: ["pointer"], result: "i32" },
  // int SSL_get_error(const SSL *ssl, int ret)
  SSL_get_error: { parameters: ["pointer", "i32"], result: "i32" },
  // long SSL_get_verify_result(const SSL *ssl)
  SSL_get_verify_result: { parameters: ["pointer"], result: "i64" },
  // const char *X509_verify_cert_error_string(long n)
  X509_verify_cert_error_string: { parameters: ["i64"], result: "pointer" },
  // const char *SSL_get_version(const SSL *ssl)
  SSL_get_version: { parameters: ["pointer"], result: "pointer" },
  // int BIO_new_bio_pair(BIO **bio1, size_t writebuf1, BIO **bio2, size_t writebuf2)
  BIO_new_bio_pair: { parameters: ["buffer", "usize", "buffer", "usize"], result: "i32" },
  // int BIO_free(BIO *a)
  BIO_free: { parameters: ["pointer"], result: "i32" },
  // int BIO_nread0(BIO *bio, char **buf)
  BIO_nread0: { parameters: ["pointer", "buffer"], result: "i32" },
  // int BIO_nread(BIO *bio, char **buf, int num)
  BIO_nread: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  // int BIO_nwrite0(BIO *bio, char **buf)
  BIO_nwrite0: { parameters: ["pointer", "buffer"], result: "i32" },
  // int BIO_nwrite(BIO *bio, char **buf, int num)
  BIO_nwrite: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  // size_t BIO_ctrl_pending(BIO *b); it is below 2^31 here, and a number of 32 bits costs no BigInt
  BIO_ctrl_pending: { parameters: ["pointer"], result: "u32" },
  // long BIO_ctrl(BIO *bp, int cmd, long larg, void *parg)
  BIO_ctrl: { parameters: ["pointer", "i32", "i64", "pointer"], result: "i64" },
  // unsigned long ERR_get_error(void)
  ERR_get_error: { parameters: [], result: "u64" },
  // void ERR_error_string_n(unsigned long e, char *buf, size_t len)
  ERR_error_string_n: { parameters: ["u64", "buffer", "usize"], result: "void" },
  // void ERR_clear_error(void)
  ERR_clear_error: { parameters: [], result: "void" },
} as const;

/** The functions of libssl that are used. */
export type Libssl = Calls<typeof SYMBOLS>;

let opened: Libssl | null = null;

/** The library. Throws `SystemError`: ENOENT when it is missing. */
export function libssl(): Libssl {
  if (opened !== null) return opened;
  try {
    // libssl then uses the libcrypto that was chosen.
    libcrypto();
    opened = openLibssl();
  } catch {
    opened = null;
  }
  if (opened !== null) return opened;
  throw new SystemError(
    Errno.ENOENT,
    "Cannot use TLS: OpenSSL's libssl is missing (Debian: install libssl3)",
  );
}

function openLibssl(): Libssl | null {
  for (const name of LIBCRYPTO_CHOICES) {
    try {
      return openLibrary(name.replace("libcrypto", "libssl"), SYMBOLS);
    } catch {
      // Try the next name.
    }
  }
  return null;
}

const OPENSSL_3_2 = 0x30200000;

/**
 * Whether connections last when the kernel has the keys that a version of OpenSSL gives it. From 3.2 on
 * it has the key to receive with of TLS 1.3, too. GnuTLS, which QEMU, libnbd and nbdkit use, changes that
 * key after 2^24 records, which a kernel cannot follow.
 */
export function kernelCanFollow(version: number): boolean {
  return version < OPENSSL_3_2;
}

const ERROR_TEXT_BYTES = 256;

/** What OpenSSL says of the errors of this thread, the last one last; it forgets them. */
export function takeSslErrors(library: Libssl): string {
  const texts: string[] = [];
  for (let i = 0; i < 8; i++) {
    const code = Number(library.ERR_get_error());
    if (code === 0) break;
    const buffer = new Uint8Array(ERROR_TEXT_BYTES);
    library.ERR_error_string_n(code, buffer, ERROR_TEXT_BYTES);
    const text = new TextDecoder().decode(buffer.subarray(0, buffer.indexOf(0)));
    // error:0A000086:SSL routines::certificate verify failed
    texts.push(text.split(":").slice(4).join(":") || text);
  }
  library.ERR_clear_error();
  return texts.join(", ");
}
