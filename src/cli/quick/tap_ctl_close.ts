import { defineClose } from "../tap_ctl/close.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("close", defineClose);
