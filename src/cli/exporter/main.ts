/**
 * `src/cli/exporter`: `blktap exporter`, which serves metrics of all disks for Prometheus. It is a process of its
 * own, which asks tapdisks by their control sockets; it must not change a disk, nor wait for a tapdisk that
 * hangs.
 *
 * @module
 */
import { Errno, errnoOf, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import { unixConnectAtOnce } from "../../../ffi/sockets.ts";
import { closeFile } from "../../../ffi/files.ts";
import { leaveSocket, removeSocket } from "../../frontend/socket_file.ts";
import { FileGatherer } from "../../observe/files.ts";
import { Gatherer } from "../../observe/gather.ts";
import { MetricsText } from "../../observe/prometheus.ts";
import { openDaemonLog } from "../daemon_log.ts";
import { printErrorLine, printErrorText, printText } from "../print.ts";
import { type ExporterPlace, namesServed, parseExporter } from "./arguments.ts";
import { MetricsServer } from "./server.ts";
import { helpText, SYNOPSIS } from "./texts.ts";

/** Whether a program listens at a socket. */
function isServed(path: string): boolean {
  try {
    closeFile(unixConnectAtOnce(path));
    return true;
  } catch (error) {
    return error instanceof SystemError && error.errno === Errno.EAGAIN;
  }
}

/** Listens at a socket that this user and group can connect to, in place of one that a killed process left. */
function listenAtSocket(path: string): Deno.Listener {
  if (isServed(path)) {
    throw new SystemError(Errno.EADDRINUSE, `Cannot listen at ${path}`, {
      file: path,
      hint: "another program listens there",
    });
  }
  removeSocket(path);
  const before = Deno.umask(0o117);
  try {
    return Deno.listen({ transport: "unix", path });
  } finally {
    Deno.umask(before);
  }
}

function listenAt(place: ExporterPlace): Deno.Listener {
  const where = textOf(place);
  try {
    return place.transport === "unix" ? listenAtSocket(place.path) : Deno.listen(place);
  } catch (error) {
    throw systemError(error, `Cannot listen at ${where}`);
  }
}

function textOf(place: ExporterPlace): string {
  if (place.transport === "unix") return place.path;
  const { hostname, port } = place;
  return hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;
}

/** The place with the port that was chosen for port 0. */
function chosen(place: ExporterPlace, { addr }: Deno.Listener): ExporterPlace {
  return place.transport === "tcp" && addr.transport === "tcp"
    ? { ...place, port: addr.port }
    : place;
}

function addressOf({ addr }: Deno.Listener): string {
  return addr.transport === "tcp" ? addr.hostname : "";
}

async function serve(place: ExporterPlace): Promise<void> {
  const log = openDaemonLog("blktap exporter", true);
  const gatherer = new Gatherer();
  const files = new FileGatherer();
  const metrics = new MetricsText();
  const listener = listenAt(place);
  const text = async (): Promise<string> => {
    const sample = await gatherer.gather();
    return metrics.of(sample, await files.gather(sample.disks));
  };
  const names = namesServed(place, {
    address: addressOf(listener),
    machine: Deno.hostname(),
  });
  const server = new MetricsServer(listener, { text, log, names });
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(signal, () => server.close());
  }
  log.info(`Serves metrics at ${textOf(chosen(place, listener))}`);
  await server.run();
  if (place.transport === "unix") leaveSocket(place.path);
}

/**
 * Runs the exporter.
 *
 * @param args The arguments after the command's name.
 * @returns The exit status: 0 or a positive error number.
 */
export async function exporterMain(args: readonly string[]): Promise<number> {
  try {
    const place = parseExporter(args);
    if (place === null) printText(helpText());
    else await serve(place);
    return 0;
  } catch (error) {
    printErrorLine(`blktap exporter: ${messageOf(error)}`);
    const errno = errnoOf(error);
    if (errno === Errno.EINVAL) printErrorText(`Usage: ${SYNOPSIS}`);
    return errno;
  }
}
