import { defineList } from "../tap_ctl/list.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("list", defineList);
