/* SPDX-License-Identifier: Apache-2.0 */
/* Reports on COM1 what reached the guest, then does what the command line says:
 *   (nothing)  power off        reboot  reset the machine
 *   wait       power off once the power button is pressed
 *   hang       halt for ever    panic   triple fault
 *   noise      first write every byte value once
 *   all        also digest the VMM's own fw_cfg files
 *   ready      tell the host over vsock that it is up, if the table says where;
 *              with it, in this order of what is sent:
 *     say=TEXT     first send this, too (%xx for any byte); may be repeated
 *     flood=N      then N messages
 *     halfclose    shut down the sending side after each, as systemd 256 does
 *     cut=N        see N bytes of each OEM structure only, as systemd before 257
 *                  does with 4096
 *     patience=N   give up a message after N seconds, 10 if not said */
#include "probe.h"

void probe_main(const struct start_info *info);

static void noise(void)
{
	for (int c = 0; c < 256; c++)
		put_byte(c);
}

void probe_main(const struct start_info *info)
{
	serial_init();
	platform_enable_power_button();
	if (command_line_has(info, "noise"))
		noise();
	put("\nprobe: begin 1\n");
	platform_report();
	report_start_info(info);
	report_smbios();
	report_fw_cfg(command_line_has(info, "all"));
	if (command_line_has(info, "ready"))
		report_ready(info);
	put("probe: end\n");
	serial_drain();
	if (command_line_has(info, "hang"))
		platform_halt();
	if (command_line_has(info, "panic"))
		platform_triple_fault();
	if (command_line_has(info, "reboot"))
		platform_reset();
	if (command_line_has(info, "wait"))
		platform_await_power_button(start_info_rsdp(info));
	platform_power_off();
}
