// SPDX-License-Identifier: Apache-2.0

package shim

func (p *parser) qemu([]string) {}
