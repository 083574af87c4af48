import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { RbdPlace } from "../../../ffi/rbd_client.ts";

/** The options that may follow an image's name. */
const OPTIONS = ["conf", "id", "cluster"] as const;
type Option = typeof OPTIONS[number];

const DEFAULT_CLUSTER = "ceph";
const DEFAULT_USER = "admin";
/** The user of images whose names say none: a VHD cannot store one with the name of its parent. */
const USER_VARIABLE = "BLKTAP_CEPH_USER";

/**
 * Takes the name of an image on Ceph apart: `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`, and behind it
 * `,conf=FILE`, `,id=USER` and `,cluster=NAME`.
 *
 * @throws {SystemError} EINVAL for what is no such name.
 */
export function parseRbdName(name: string, { readOnly }: { readOnly: boolean }): RbdPlace {
  const title = `rbd:${name}`;
  const refuse = (why: string): never => {
    throw new SystemError(Errno.EINVAL, `Cannot open ${title} (${why})`);
  };
  const [where, ...settings] = name.split(",");
  const parts = where.split("/");
  if (parts.length < 2 || parts.length > 3) {
    refuse("it is named rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE");
  }
  const [pool, namespace, last] = parts.length === 3 ? parts : [parts[0], "", parts[1]];
  const at = last.indexOf("@");
  const [image, snapshot] = at < 0 ? [last, null] : [last.slice(0, at), last.slice(at + 1)];
  if (pool === "" || image === "" || snapshot === "" || (parts.length === 3 && namespace === "")) {
    refuse("a part of its name is empty");
  }
  const options = parseOptions(settings, refuse);
  const conf = options.get("conf") ?? null;
  // tapdisk's working folder is not that of the user.
  if (conf !== null && !conf.startsWith("/")) refuse("conf= takes an absolute path");
  return {
    title,
    pool,
    namespace,
    image,
    snapshot,
    cluster: options.get("cluster") ?? DEFAULT_CLUSTER,
    user: (options.get("id") || Deno.env.get(USER_VARIABLE) || DEFAULT_USER).replace(
      /^client\./,
      "",
    ),
    conf,
    readOnly,
  };
}

function parseOptions(
  settings: readonly string[],
  refuse: (why: string) => never,
): Map<Option, string> {
  const options = new Map<Option, string>();
  for (const setting of settings) {
    const equals = setting.indexOf("=");
    const option = OPTIONS.find((known) => known === setting.slice(0, Math.max(0, equals)));
    const value = setting.slice(equals + 1);
    if (option === undefined || value === "") {
      refuse(`${JSON.stringify(setting)} is none of conf=FILE, id=USER and cluster=NAME`);
    } else if (options.has(option)) refuse(`${option}= is there twice`);
    else options.set(option, value);
  }
  return options;
}
