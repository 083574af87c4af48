/** Whether root may mount filesystems; in a container it may not. */
export function mayMount(): boolean {
  const folder = Deno.makeTempDirSync();
  try {
    const args = ["-t", "tmpfs", "-o", "size=1m", "none", folder];
    if (!new Deno.Command("mount", { args, stderr: "null" }).outputSync().success) return false;
    return new Deno.Command("umount", { args: [folder] }).outputSync().success;
  } finally {
    Deno.removeSync(folder);
  }
}
