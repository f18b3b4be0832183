package taskqueue

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
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
}

// Broker is where RabbitMQ is, and who we are there.
type Broker struct {
	URI string
	TLS *tls.Config
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
	s.Broker = e.broker()
	return s, e.err
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

// BrokerFromEnvironment reads only where the broker is; for producers.
func BrokerFromEnvironment() (Broker, error) {
	e := environment{}
	return e.broker(), e.err
}

// environment reads variables; err is about the first that is missing or wrong.
type environment struct{ err error }

func (e *environment) fail(format string, arguments ...any) {
	if e.err == nil {
		e.err = fmt.Errorf(format, arguments...)
	}
}

func (e *environment) required(name string) string {
	value := os.Getenv(name)
	if value == "" {
		e.fail("%s is not set", name)
	}
	return value
}

func (e *environment) number(name string, otherwise float64) float64 {
	text := os.Getenv(name)
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

func (e *environment) broker() Broker {
	authority := os.Getenv("TASKQUEUE_BROKER_CA_CERT")
	certificate, key := os.Getenv("TASKQUEUE_BROKER_TLS_CERT"), os.Getenv("TASKQUEUE_BROKER_TLS_KEY")
	broker := Broker{URI: os.Getenv("TASKQUEUE_BROKER_URI"), TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
	if authority != "" {
		broker.TLS.RootCAs = x509.NewCertPool()
		if !broker.TLS.RootCAs.AppendCertsFromPEM([]byte(authority)) {
			e.fail("TASKQUEUE_BROKER_CA_CERT has no readable certificate")
		}
	}
	if certificate != "" || key != "" {
		pair, err := tls.X509KeyPair([]byte(certificate), []byte(key))
		if err != nil {
			e.fail("TASKQUEUE_BROKER_TLS_CERT and TASKQUEUE_BROKER_TLS_KEY: %v", err)
		}
		broker.TLS.Certificates = []tls.Certificate{pair}
	}
	if broker.URI != "" {
		broker.URI = e.withCredentials(broker.URI)
		return broker
	}
	secured := os.Getenv("TASKQUEUE_BROKER_TLS") == "true" || authority != "" || certificate != ""
	uri := amqp.URI{
		Scheme:   "amqp",
		Host:     e.required("TASKQUEUE_BROKER_HOST"),
		Port:     int(e.number("TASKQUEUE_BROKER_PORT", 0)),
		Username: e.required("TASKQUEUE_BROKER_USERNAME"),
		Password: e.required("TASKQUEUE_BROKER_PASSWORD"),
		Vhost:    os.Getenv("TASKQUEUE_BROKER_VHOST"),
	}
	if secured || uri.Port == 5671 {
		uri.Scheme = "amqps"
	}
	if uri.Port == 0 {
		uri.Port = map[string]int{"amqp": 5672, "amqps": 5671}[uri.Scheme]
	}
	if uri.Vhost == "" {
		uri.Vhost = "/"
	}
	broker.URI = uri.String()
	return broker
}

// withCredentials adds user and password where a Secret has them beside the URI.
func (e *environment) withCredentials(text string) string {
	uri, err := amqp.ParseURI(text)
	if err != nil {
		// The error may quote the password.
		e.fail("TASKQUEUE_BROKER_URI cannot be read: give amqp://user:password@host:port/vhost")
		return text
	}
	user := os.Getenv("TASKQUEUE_BROKER_USERNAME")
	if user != "" && uri.Username == "guest" && uri.Password == "guest" {
		uri.Username, uri.Password = user, os.Getenv("TASKQUEUE_BROKER_PASSWORD")
	}
	return uri.String()
}
