package taskqueue

import (
	"fmt"
	"net"
	"net/http"
	"time"
)

// serveHealth answers /healthz while the dispatcher answers, and /readyz while a consumer is registered.
func serveHealth(port int, dispatcher *dispatcher, consumer *consumer) (stop func(), err error) {
	if port == 0 {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, fmt.Errorf("TASKQUEUE_HEALTH_PORT: %w", err)
	}
	routes := http.NewServeMux()
	routes.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) {
		turned := make(chan struct{})
		dispatcher.post(func() { close(turned) })
		select {
		case <-turned:
			fmt.Fprintln(answer, "ok")
		case <-time.After(2 * time.Second):
			http.Error(answer, "the worker does not get round to anything", http.StatusServiceUnavailable)
		}
	})
	routes.HandleFunc("/readyz", func(answer http.ResponseWriter, _ *http.Request) {
		if !consumer.registered.Load() {
			http.Error(answer, "no consumer is registered with the broker", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(answer, "ok")
	})
	server := &http.Server{Handler: routes, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return func() { _ = server.Close() }, nil
}
