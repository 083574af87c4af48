import { type Command, InvalidArgumentError, Option } from "commander";
import {
  type ListenChoice,
  MAX_CLIENTS,
  MAX_CLIENTS_PER_ADDRESS,
  parseListen,
  type ServeChoices,
  serveRequest,
} from "../../control/client/serve_choices.ts";
import { LONGEST_EXPORT_NAME_BYTES, MOST_EXPORT_CLIENTS } from "../../control/protocol/serve.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import { TLS_CERTIFICATES_FOLDER, TLS_MODES } from "../../tls/tls.ts";
import { absolutePath } from "./paths.ts";

function listenChoice(text: string): ListenChoice {
  const choice = parseListen(text);
  if (choice !== null) return choice;
  throw new InvalidArgumentError(
    "It must be HOST:PORT, such as 192.0.2.1:10809, [2001:db8::1]:10809, or :10809 for all.",
  );
}

function parseClients(text: string): number {
  const count = Number(text);
  if (/^\d+$/.test(text) && count >= 1 && count <= MOST_EXPORT_CLIENTS) return count;
  throw new InvalidArgumentError(`It must be a whole number from 1 to ${MOST_EXPORT_CLIENTS}.`);
}

function parseName(text: string): string {
  if (new TextEncoder().encode(text).length <= LONGEST_EXPORT_NAME_BYTES) return text;
  throw new InvalidArgumentError(`It must have at most ${LONGEST_EXPORT_NAME_BYTES} bytes.`);
}

/** `--listen`. */
export function listenOption(text = "serve the disk by NBD on this address, port 10809"): Option {
  return new Option("--listen <host:port>", text).argParser(listenChoice);
}

/** The options that say how a disk is served over TCP. */
export function serveOptions(command: Command): Command {
  return command
    .addOption(listenOption())
    .option("--export-name <name>", "the export's name; empty by default", parseName)
    .addOption(
      new Option("--tls <mode>", "require by default where certificates or keys are named")
        .choices(TLS_MODES),
    )
    .option(
      "--tls-certificates <folder>",
      `server-cert.pem, server-key.pem and ca-cert.pem; by default in ${TLS_CERTIFICATES_FOLDER}`,
    )
    .option("--tls-psk <file>", "keys instead of certificates: lines NAME:HEX, as of psktool")
    .option("--tls-verify-peer", "clients must have a certificate that is of ca-cert.pem")
    .option("--max-clients <count>", `the most clients, ${MAX_CLIENTS} by default`, parseClients)
    .option(
      "--max-clients-per-address <count>",
      `the most clients from one address, ${MAX_CLIENTS_PER_ADDRESS} by default`,
      parseClients,
    );
}

/** What the options ask for; null without `--listen`. Throws as `serveRequest` does. */
export function requestOf(choices: ServeChoices): ServeRequest | null {
  const { tlsCertificates, tlsPsk } = choices;
  return serveRequest({
    ...choices,
    ...(tlsCertificates === undefined ? {} : { tlsCertificates: absolutePath(tlsCertificates) }),
    ...(tlsPsk === undefined ? {} : { tlsPsk: absolutePath(tlsPsk) }),
  });
}
