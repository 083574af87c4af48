import { defineAttach } from "../tap_ctl/attach.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("attach", defineAttach);
