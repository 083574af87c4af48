import type { Call } from "./dispatch.ts";

export { printErrorText } from "./print.ts";

/**
 * Runs any call: the whole program, of which a command loads the modules that it needs. What comes before it, such as
 * `quick/`, must not import it.
 */
export async function runProgram(call: Call): Promise<number> {
  if (call.kind !== "command") return (await import("./blktap.ts")).blktapMain(call);
  const { argumentsOf } = await import("./arguments.ts");
  const args = argumentsOf(call.name, call.args);
  if (typeof args === "number") return args;
  switch (call.name) {
    case "tapdisk":
      return await (await import("./tapdisk/serving.ts")).childMain(args) ??
        await (await import("./tapdisk/main.ts")).tapdiskMain(args);
    case "tap-ctl":
      return await (await import("./tap_ctl/main.ts")).tapCtlMain(args);
    case "vhd-util":
      return await (await import("./vhd_util/main.ts")).vhdUtilMain(args);
    case "cbt-util":
      return await (await import("./cbt_util/main.ts")).cbtUtilMain(args);
    case "td-rated":
      return await (await import("./td_rated/main.ts")).tdRatedMain(args);
    case "tapback":
      return await (await import("./tapback/main.ts")).tapbackMain(args);
    case "exporter":
      return await (await import("./exporter/main.ts")).exporterMain(args);
    case "doctor":
      return await (await import("./doctor/main.ts")).doctorMain(args);
    case "td-util":
      return await (await import("./td_util/main.ts")).tdUtilMain(args);
    case "web":
      return await (await import("./web/main.ts")).webMain(args);
    case "img2qcow":
    case "qcow2raw":
    case "qcow-create":
    case "tapdisk-diff":
    case "tapdisk-stream":
      return await (await import("./image_tools/main.ts")).imageToolMain(call.name, args);
  }
}
