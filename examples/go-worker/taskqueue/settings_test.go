package taskqueue

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestLimitsOfDirectMessagesFollowTheirFiles(t *testing.T) {
	s := Settings{DirectTimeout: time.Minute, DirectMaxDeliveries: 5, LimitsDirectory: t.TempDir()}
	for _, each := range []struct {
		seconds, deliveries string
		timeout             time.Duration
		limit               int64
	}{
		{"", "", time.Minute, 5},
		{"7", "2\n", 7 * time.Second, 2},
		{"many", "0", time.Minute, 5},
	} {
		write(t, s.LimitsDirectory, "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS", each.seconds)
		write(t, s.LimitsDirectory, "TASKQUEUE_MAX_DELIVERIES", each.deliveries)
		if timeout, limit := s.directLimits(); timeout != each.timeout || limit != each.limit {
			t.Errorf("%+v: %s and %d", each, timeout, limit)
		}
	}
}

func write(t *testing.T, directory, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(directory, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
