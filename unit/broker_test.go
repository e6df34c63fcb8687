// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestBrokerFile(t *testing.T) {
	for _, audit := range []string{"", brokerLogs + "/audit.log", brokerLogs + "/a/b.log"} {
		if f, needed := BrokerFile(audit); needed {
			t.Errorf("%q: %+v", audit, f)
		}
	}
	f, needed := BrokerFile(`/srv/my "logs" 50%/audit.log`)
	if !needed || f.Path != "vmcred-broker.service.d/10-vmcred.conf" || !strings.HasSuffix(string(f.Text), "\nReadWritePaths=\"-/srv/my \\\"logs\\\" 50%%\"\n") {
		t.Errorf("%s\n%s", f.Path, f.Text)
	}
	verify(t, place(t, filepath.Dir(instance(t)), f))
	if f, needed := BrokerFile("/var/log/vmcred-old/audit.log"); !needed {
		t.Errorf("%+v", f)
	}
}
