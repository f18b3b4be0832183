package taskqueue

import (
	"os"
	"path/filepath"
	"strings"
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

func TestBrokerIsReadAgainForEachConnection(t *testing.T) {
	for _, name := range []string{"URI", "HOST", "PORT", "USERNAME", "PASSWORD", "VHOST"} {
		t.Setenv("TASKQUEUE_BROKER_"+name, "")
	}
	directory := t.TempDir()
	t.Setenv("TASKQUEUE_BROKER_DIRECTORY", directory)
	t.Setenv("TASKQUEUE_BROKER_URI", "amqp://old:old@rabbit/")
	t.Setenv("TASKQUEUE_BROKER_VHOST", "mine")
	write(t, directory, "uri", "amqp://me:first@rabbit/")
	broker, err := BrokerFromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range []struct {
		remove, file, text, uri string
	}{
		{"", "uri", "amqp://me:second@rabbit/", "amqp://me:second@rabbit/"},
		// The variable with the former URI does not count: it is a copy. That of the template does.
		{"uri", "host", "other", ""},
		{"", "username", "me", ""},
		{"", "password", "third", "amqp://me:third@other/mine"},
		{"", "port", "many", ""},
		{"port", "password", "fourth", "amqp://me:fourth@other/mine"},
	} {
		if each.remove != "" {
			if err := os.Remove(filepath.Join(directory, each.remove)); err != nil {
				t.Fatal(err)
			}
		}
		write(t, directory, each.file, each.text)
		now, err := broker.now()
		if each.uri == "" {
			if err == nil || !strings.Contains(err.Error(), directory) {
				t.Errorf("%+v: %v", each, err)
			}
		} else if err != nil || now.URI != each.uri {
			t.Errorf("%+v: %s, %v", each, now.URI, err)
		}
	}
}

func TestBrokerInVariablesStays(t *testing.T) {
	t.Setenv("TASKQUEUE_BROKER_DIRECTORY", "")
	t.Setenv("TASKQUEUE_BROKER_URI", "amqp://me:first@rabbit/")
	broker, err := BrokerFromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TASKQUEUE_BROKER_URI", "amqp://me:second@rabbit/")
	if now, err := broker.now(); err != nil || now.URI != broker.URI {
		t.Errorf("%s, %v", now.URI, err)
	}
}
