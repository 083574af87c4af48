import { defineDetach } from "../tap_ctl/detach.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("detach", defineDetach);
