/**
 * Remote disks: an export of an NBD server as an image. It speaks the client's side of the protocol
 * and knows nothing of the server on the other side of the device, in `src/frontend`.
 *
 * @module
 */
import { closeFile } from "../../../ffi/files.ts";
import type { DriverType, ImageContext, ImageDriver, ImageSpec, RequestSink } from "../driver.ts";
import { dialAndWait } from "./dial.ts";
import { parseExportName } from "./export_name.ts";
import { exportFault, NbdImage } from "./nbd_image.ts";

function open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
  const { exportName } = parseExportName(spec.path);
  const connected = dialAndWait(spec.path, `${spec.type}:${spec.path}`);
  const fault = exportFault(connected.remote, spec);
  if (fault !== null) {
    closeFile(connected.fd);
    throw fault;
  }
  return new NbdImage({ spec, context, sink, connected, exportName });
}

/** Exports of NBD servers, by name (`nbd:HOST:PORT`) or as URIs of two schemes. */
export const nbdDrivers: readonly DriverType[] = [{ type: "nbd", open }, {
  type: "nbd+unix",
  open,
}];
