/**
 * `src/cli/web`: `blktap web`, the page in the browser. The folder parses arguments, listens, and handles
 * signals. It must not make pages itself.
 *
 * @module
 */
import { Errno, errnoOf, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import { effectiveUser, raiseDescriptorLimit } from "../../../ffi/process.ts";
import { prepareFolders } from "../../control/paths.ts";
import { leaveSocket } from "../../frontend/socket_file.ts";
import { Gatherer } from "../../observe/gather.ts";
import { Access, makeToken } from "../../web/access.ts";
import { readAssets } from "../../web/assets.ts";
import { Explanations } from "../../web/explanations.ts";
import { Facts } from "../../web/facts.ts";
import { FrontDoor } from "../../web/front_door.ts";
import { Jobs } from "../../web/jobs.ts";
import { Monitor } from "../../web/monitor.ts";
import { askOpenRequests } from "../../web/open_requests.ts";
import { userOfPeer } from "../../web/peer.ts";
import { LinesWatch } from "../../web/lines_watch.ts";
import { faultText, WebServer } from "../../web/server.ts";
import { ownCommand } from "../background.ts";
import { printErrorLine, printErrorText, printLine, printText } from "../print.ts";
import { parseWeb, type WebAddress, type WebChoices, WORKER_ARGUMENT } from "./arguments.ts";
import { innerSocket, listenForOwner, prepareSocket } from "./sockets.ts";
import { readTokenFile } from "./token_file.ts";
import { helpText, SYNOPSIS } from "./texts.ts";
import { runWorker } from "./worker.ts";

/** How long requests that are being answered may take when the page ends. */
const SHUTDOWN_MS = 2000;

/** Whether a client is one of root or of the user of this process, over the loopback device. */
function isOwnClient({ remoteAddr: client, localAddr: server }: Deno.Conn): boolean {
  if (client.transport !== "tcp" || server.transport !== "tcp") return false;
  const user = userOfPeer({ client, server });
  return user === 0 || user === effectiveUser();
}

/** The token, and whether it was made here. */
function tokenFor({ address, tokenFile }: WebChoices): { token: string | null; isMade: boolean } {
  if (tokenFile !== null) return { token: readTokenFile(tokenFile), isMade: false };
  const isLocal = address.kind === "socket" || address.isLoopback;
  return isLocal ? { token: null, isMade: false } : { token: makeToken(), isMade: true };
}

function urlOf({ hostname, port }: Deno.NetAddr): string {
  const host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return `http://${host}:${port}/`;
}

function listen(address: WebAddress): Deno.Listener {
  if (address.kind === "port") {
    const { hostname, port } = address;
    try {
      return Deno.listen({ hostname, port });
    } catch (error) {
      throw systemError(error, `Cannot listen on ${hostname}:${port}`);
    }
  }
  prepareSocket(address.path);
  return listenForOwner(address.path);
}

/** Serves HTTP on a socket that only the front door uses. */
function serveInside(path: string, server: WebServer): Deno.HttpServer<Deno.UnixAddr> {
  const mask = Deno.umask(0o177);
  try {
    return Deno.serve({
      path,
      onListen: () => {},
      onError(error): Response {
        printErrorText(`blktap web: ${faultText(error)}`);
        return new Response("This is a fault of the program.\n", { status: 500 });
      },
    }, (request) => server.handle(request));
  } catch (error) {
    throw systemError(error, `Cannot listen on ${path}`);
  } finally {
    Deno.umask(mask);
  }
}

/** The line that says where the page is. */
function readyLine(listener: Deno.Listener, { shownToken, allowsChanges }: {
  shownToken: string | null;
  allowsChanges: boolean;
}): string {
  const { addr } = listener;
  const where = addr.transport === "tcp"
    ? urlOf(addr)
    : `the socket ${addr.transport === "unix" ? addr.path : ""}`;
  const query = shownToken === null ? "" : `?token=${shownToken}`;
  return `Serves ${where}${query} (${allowsChanges ? "with changes" : "read-only"})`;
}

/** Serves the page until a signal ends it. */
async function serve(choices: WebChoices): Promise<void> {
  const { address, names, folders, allowsChanges } = choices;
  raiseDescriptorLimit();
  const { token, isMade } = tokenFor(choices);
  const assets = readAssets();
  prepareFolders();
  const gatherer = new Gatherer();
  const explanations = new Explanations();
  const monitor = new Monitor(() => gatherer.gather());
  const { program, first } = ownCommand("web");
  const jobs = new Jobs({ program, args: [...first, `--${WORKER_ARGUMENT}`] });
  const server = new WebServer({
    monitor,
    requests: new LinesWatch(monitor, askOpenRequests),
    findings: new LinesWatch(monitor, (device) => explanations.of(device)),
    facts: new Facts(jobs),
    access: new Access({ token, names }),
    assets,
    allowsChanges,
    folders,
    host: Deno.hostname(),
    onFault: (error) => printErrorText(`blktap web: ${faultText(error)}`),
  });
  const listener = listen(address);
  await monitor.start();
  const inner = innerSocket();
  const http = serveInside(inner, server);
  const needsOwnClient = address.kind === "port" && token === null;
  const door = new FrontDoor(listener, {
    inner,
    mayConnect: (conn) => !needsOwnClient || isOwnClient(conn),
  });
  const end = (): void => {
    door.stop();
    monitor.close();
    server.close();
    jobs.close();
  };
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    Deno.addSignalListener(signal, end);
  }
  printLine(readyLine(listener, { shownToken: isMade ? token : null, allowsChanges }));
  await door.run();
  await Promise.race([http.shutdown(), sleep(SHUTDOWN_MS)]);
  door.close();
  leaveSocket(inner);
  if (address.kind === "socket") leaveSocket(address.path);
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/**
 * Runs `blktap web`.
 *
 * @param args The arguments after `web`.
 * @returns The exit status: 0 or a positive error number.
 */
export async function webMain(args: readonly string[]): Promise<number> {
  try {
    const choices = parseWeb(args);
    if (choices === null) printText(helpText());
    else if (choices.isWorker) await runWorker();
    else await serve(choices);
    return 0;
  } catch (error) {
    printErrorLine(`blktap web: ${messageOf(error)}`);
    const errno = error instanceof SystemError ? error.errno : errnoOf(error);
    if (errno === Errno.EINVAL) printErrorText(`Usage: ${SYNOPSIS}`);
    return errno;
  }
}
