import {
  closeFile,
  O_CREAT,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_WRONLY,
  openFile,
} from "../../../ffi/files.ts";
import { BLKTAP2_CONTROL_DIR, controlFolder } from "../paths.ts";

/**
 * The file that tells that a minor's image became full, and that writes go to its secondary image:
 * `/run/tapdisk-enospc<MINOR>` as in the original (BLKTAP2_ENOSPC_SIGNAL_FILE). With a control folder
 * of one's own, it is in that folder.
 */
function enospcPath(minor: number): string {
  const folder = controlFolder();
  return `${folder === BLKTAP2_CONTROL_DIR ? "/run" : folder}/tapdisk-enospc${minor}`;
}

/** Makes that file, unless it exists. Follows no symbolic link. Throws `SystemError`. */
export function touchEnospcFile(minor: number): void {
  const flags = O_WRONLY | O_CREAT | O_NONBLOCK | O_NOFOLLOW;
  closeFile(openFile(enospcPath(minor), flags, 0o600));
}
