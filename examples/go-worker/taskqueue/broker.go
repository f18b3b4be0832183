package taskqueue

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Broker is where RabbitMQ is, and who we are there.
type Broker struct {
	URI string
	TLS *tls.Config

	// source is read again for each connection; nil: nothing can change.
	source *brokerSource
}

// BrokerFromEnvironment reads only where the broker is; for producers.
func BrokerFromEnvironment() (Broker, error) {
	source := &brokerSource{directory: os.Getenv("TASKQUEUE_BROKER_DIRECTORY"), inFiles: map[string]bool{}}
	return source.read()
}

// now returns the broker as its files have it now.
func (b Broker) now() (Broker, error) {
	if b.source == nil || b.source.directory == "" {
		return b, nil
	}
	return b.source.read()
}

// brokerKeys has the key of the broker's Secret for each variable; that is the name of the file too.
var brokerKeys = map[string]string{
	"TASKQUEUE_BROKER_URI":      "uri",
	"TASKQUEUE_BROKER_HOST":     "host",
	"TASKQUEUE_BROKER_PORT":     "port",
	"TASKQUEUE_BROKER_USERNAME": "username",
	"TASKQUEUE_BROKER_PASSWORD": "password",
	"TASKQUEUE_BROKER_VHOST":    "vhost",
	"TASKQUEUE_BROKER_TLS":      "tls",
	"TASKQUEUE_BROKER_CA_CERT":  "ca.crt",
	"TASKQUEUE_BROKER_TLS_CERT": "tls.crt",
	"TASKQUEUE_BROKER_TLS_KEY":  "tls.key",
}

// brokerSource reads the keys of the broker's Secret, which the kubelet replaces when the Secret
// changes, and the environment variables. A file counts before its variable. Once there was one, the
// variable never counts again: it may be a copy of what has been removed from the Secret since.
type brokerSource struct {
	directory string
	mutex     sync.Mutex
	inFiles   map[string]bool
}

func (s *brokerSource) read() (Broker, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	e := environment{}
	e.lookup = func(name string) string {
		if s.directory != "" {
			text, err := os.ReadFile(filepath.Join(s.directory, brokerKeys[name]))
			if err == nil {
				s.inFiles[name] = true
				return string(text)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				e.fail("%s in a file: %v", name, err)
			}
		}
		if s.inFiles[name] {
			return ""
		}
		return os.Getenv(name)
	}
	broker := e.broker()
	broker.source = s
	if e.err != nil && s.directory != "" {
		return broker, fmt.Errorf("%w (a variable, or its key as a file in %s)", e.err, s.directory)
	}
	return broker, e.err
}

func (e *environment) broker() Broker {
	authority := e.get("TASKQUEUE_BROKER_CA_CERT")
	certificate, key := e.get("TASKQUEUE_BROKER_TLS_CERT"), e.get("TASKQUEUE_BROKER_TLS_KEY")
	broker := Broker{URI: e.get("TASKQUEUE_BROKER_URI"), TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
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
	secured := e.get("TASKQUEUE_BROKER_TLS") == "true" || authority != "" || certificate != ""
	uri := amqp.URI{
		Scheme:   "amqp",
		Host:     e.required("TASKQUEUE_BROKER_HOST"),
		Port:     int(e.number("TASKQUEUE_BROKER_PORT", 0)),
		Username: e.required("TASKQUEUE_BROKER_USERNAME"),
		Password: e.required("TASKQUEUE_BROKER_PASSWORD"),
		Vhost:    e.get("TASKQUEUE_BROKER_VHOST"),
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
	user := e.get("TASKQUEUE_BROKER_USERNAME")
	if user != "" && uri.Username == "guest" && uri.Password == "guest" {
		uri.Username, uri.Password = user, e.get("TASKQUEUE_BROKER_PASSWORD")
	}
	return uri.String()
}
