/**
 * `src/driver/nbd`: an export of an NBD server as an image. It speaks the client's side of the
 * protocol. It must not use the server in `src/frontend/nbd`, and must not wait for the server while
 * other disks are served.
 *
 * @module
 */
import { type DoneWith, systemError } from "../../../ffi/errno.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type {
  DriverType,
  ImageContext,
  ImageDriver,
  ImageSpec,
  Prepared,
  RequestSink,
} from "../driver.ts";
import { NAMES_OTHER } from "../image_name.ts";
import { closeConnected, type Connected, dial, dialAndWait } from "./dial.ts";
import { type ExportName, parseExportName } from "./export_name.ts";
import { exportFault, NbdImage } from "./nbd_image.ts";

/** A connection to an export that is to be opened. */
class DialledExport implements Prepared {
  readonly connected: Connected;

  constructor(connected: Connected) {
    this.connected = connected;
  }

  discard(): void {
    closeConnected(this.connected);
  }
}

function prepare(spec: ImageSpec, scheduler: Scheduler, done: DoneWith<Prepared>): () => void {
  return dial(nameOf(spec), titleOf(spec), {
    scheduler,
    done(result): void {
      if (!(result instanceof Error)) done(null, new DialledExport(result));
      else done(systemError(result, `Cannot open ${titleOf(spec)}`), null);
    },
  });
}

/** Where the image is. Throws `SystemError` EINVAL for a name that is none. */
function nameOf({ type, path }: ImageSpec): ExportName {
  return parseExportName(path, undefined, type.startsWith("nbds"));
}

function titleOf({ type, path }: ImageSpec): string {
  return `${type}:${path}`;
}

function open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
  const prepared = context.takePrepared();
  const connected = prepared instanceof DialledExport
    ? prepared.connected
    : dialAndWait(nameOf(spec), titleOf(spec));
  const fault = exportFault(connected.remote, spec);
  if (fault !== null) {
    closeConnected(connected);
    throw fault;
  }
  return new NbdImage({ spec, context, sink, connected });
}

/** Exports of NBD servers, by name (`nbd:HOST:PORT`) or as URIs. */
export const nbdDriver: DriverType = {
  type: "nbd",
  where: "ADDRESS[:NAME]",
  summary: "An export of an NBD server; ADDRESS is HOST:PORT or unix:SOCKET, " +
    "or a descriptor's name",
  number: 15,
  named: () => NAMES_OTHER,
  prepare,
  open,
};

/** The same as URIs of another scheme. */
export const nbdUnixDriver: DriverType = {
  ...nbdDriver,
  type: "nbd+unix",
  where: "///NAME?socket=SOCKET",
  summary: "An export of an NBD server on a Unix socket, as a URI",
};

/** The same over TLS, as URIs. */
export const nbdsDriver: DriverType = {
  ...nbdDriver,
  type: "nbds",
  where: "//HOST/NAME?tls-certificates=FOLDER",
  summary: "An export of an NBD server over TLS, as a URI",
};

/** The same over TLS on a Unix socket. */
export const nbdsUnixDriver: DriverType = {
  ...nbdDriver,
  type: "nbds+unix",
  where: "///NAME?socket=SOCKET",
  summary: "An export of an NBD server on a Unix socket over TLS, as a URI",
};
