import { defineListing } from "../tap_ctl/listing.ts";
import { quickCommand } from "./tap_ctl.ts";

export const run = quickCommand("list", (command) => defineListing(command));
