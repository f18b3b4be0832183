package taskqueue

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// defaultInstallation is the installation of an operator, and a worker, that names none.
const defaultInstallation = "default"

// Settings are what the operator puts into a worker's environment.
type Settings struct {
	Namespace string
	Queue     string
	// Installation of the operator that serves the TaskQueue.
	Installation string
	Pod          string
	// Slots is how many attempts run at once.
	Slots int
	// Grace is how long running attempts may go on after SIGTERM.
	Grace time.Duration
	// Drained is how long a drained worker waits for SIGTERM.
	Drained time.Duration
	// HealthPort is where /healthz and /readyz are served; 0: nowhere.
	HealthPort int
	// DirectTimeout and DirectMaxDeliveries hold for direct messages; a Task brings its own.
	DirectTimeout       time.Duration
	DirectMaxDeliveries int64
	// LimitsDirectory has these two as files of their variables' names, which may change; or "".
	LimitsDirectory string

	Broker Broker
	// Results say where results go that no status takes.
	Results ResultSettings
}

// SettingsFromEnvironment reads what the operator sets. An error names the variable.
func SettingsFromEnvironment() (Settings, error) {
	e := environment{}
	s := Settings{
		Namespace:           e.required("TASKQUEUE_NAMESPACE"),
		Queue:               e.required("TASKQUEUE_QUEUE"),
		Installation:        os.Getenv("TASKQUEUE_INSTALLATION"),
		Pod:                 os.Getenv("POD_NAME"),
		Slots:               int(e.number("TASKQUEUE_CONCURRENCY", float64(runtime.GOMAXPROCS(0)))),
		Grace:               e.seconds("TASKQUEUE_GRACE_SECONDS", 25),
		Drained:             e.seconds("TASKQUEUE_DRAINED_SECONDS", 60),
		HealthPort:          int(e.number("TASKQUEUE_HEALTH_PORT", 8081)),
		DirectTimeout:       e.seconds("TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS", 300),
		DirectMaxDeliveries: int64(e.number("TASKQUEUE_MAX_DELIVERIES", 3)),
		LimitsDirectory:     os.Getenv("TASKQUEUE_LIMITS_DIRECTORY"),
		Results: ResultSettings{
			Directory: os.Getenv("TASKQUEUE_RESULTS_DIRECTORY"),
			URI:       os.Getenv("TASKQUEUE_RESULTS_URI"),
			Always:    os.Getenv("TASKQUEUE_RESULTS_POLICY") == "Always",
			Retention: e.seconds("TASKQUEUE_RESULTS_RETENTION_SECONDS", 0),
		},
	}
	if s.Installation == "" {
		s.Installation = defaultInstallation
	}
	if s.Pod == "" {
		s.Pod, _ = os.Hostname()
	}
	if s.Slots < 1 || s.DirectMaxDeliveries < 1 {
		e.fail("TASKQUEUE_CONCURRENCY and TASKQUEUE_MAX_DELIVERIES must be at least 1")
	}
	if e.err != nil {
		return s, e.err
	}
	broker, err := BrokerFromEnvironment()
	s.Broker = broker
	return s, err
}

// directLimits is how long a direct message may run and how often it may be delivered, now. A file that
// is missing or wrong changes nothing.
func (s *Settings) directLimits() (time.Duration, int64) {
	timeout, deliveries := s.DirectTimeout, s.DirectMaxDeliveries
	if seconds, ok := s.limit("TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS"); ok {
		timeout = time.Duration(seconds * float64(time.Second))
	}
	if number, ok := s.limit("TASKQUEUE_MAX_DELIVERIES"); ok && number >= 1 {
		deliveries = int64(number)
	}
	return timeout, deliveries
}

func (s *Settings) limit(name string) (float64, bool) {
	if s.LimitsDirectory == "" {
		return 0, false
	}
	text, err := os.ReadFile(filepath.Join(s.LimitsDirectory, name))
	if err != nil {
		return 0, false
	}
	value, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
	return value, err == nil && value > 0 && value <= 1e6
}

// environment reads variables; err is about the first that is missing or wrong.
type environment struct {
	err error
	// lookup replaces os.Getenv, if it is not nil.
	lookup func(name string) string
}

func (e *environment) get(name string) string {
	if e.lookup != nil {
		return e.lookup(name)
	}
	return os.Getenv(name)
}

func (e *environment) fail(format string, arguments ...any) {
	if e.err == nil {
		e.err = fmt.Errorf(format, arguments...)
	}
}

func (e *environment) required(name string) string {
	value := e.get(name)
	if value == "" {
		e.fail("%s is not set", name)
	}
	return value
}

func (e *environment) number(name string, otherwise float64) float64 {
	text := e.get(name)
	if text == "" {
		return otherwise
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || value < 0 {
		e.fail("%s is %q: give a number, at least 0", name, text)
	}
	return value
}

func (e *environment) seconds(name string, otherwise float64) time.Duration {
	return time.Duration(e.number(name, otherwise) * float64(time.Second))
}
