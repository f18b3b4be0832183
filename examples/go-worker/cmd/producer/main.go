// A producer of direct messages: no Task, no Kubernetes, only AMQP.
//
//	TASKQUEUE_BROKER_URI=amqp://user:password@localhost:5672/ \
//	    producer -namespace shop -queue thumbnails -handler checksum '{"text": "hello"}' '{"text": "you"}'
//
// It prints the correlation id of each message the broker has stored, and exits with 1 if one was
// not: its end is published to the exchange taskqueue.events with that id.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"taskqueue.dev/examples/go-worker/taskqueue"
)

// patience is how long the broker may take to confirm a message.
const patience = 30 * time.Second

func main() {
	namespace := flag.String("namespace", "default", "namespace of the TaskQueue")
	queue := flag.String("queue", "", "name of the TaskQueue")
	handler := flag.String("handler", "", "handler to run; empty for the workers' default")
	flag.Parse()
	if *queue == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: producer -namespace NAMESPACE -queue QUEUE [-handler NAME] BODY…")
		os.Exit(2)
	}
	if err := produce(taskqueue.RoutingKey(*namespace, *queue), *handler, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "producer:", err)
		os.Exit(1)
	}
}

func produce(key, handler string, bodies []string) error {
	broker, err := taskqueue.BrokerFromEnvironment()
	if err != nil {
		return err
	}
	connection, err := broker.Dial("producer")
	if err != nil {
		return err
	}
	defer connection.Close()
	exchange, err := taskqueue.DirectExchange(connection)
	if err != nil {
		return err
	}
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))
	for _, body := range bodies {
		id, err := publish(channel, returns, exchange, key, handler, body)
		if err != nil {
			return err
		}
		fmt.Println(id)
	}
	return nil
}

// publish returns the correlation id once the queue has stored the message.
func publish(
	channel *amqp.Channel, returns chan amqp.Return, exchange, key, handler, body string,
) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	id := newID()
	confirm, err := channel.PublishWithDeferredConfirmWithContext(ctx, exchange, key,
		true, // mandatory: return it if there is no queue
		false,
		amqp.Publishing{
			Type:          handler,
			MessageId:     id,
			CorrelationId: id,
			DeliveryMode:  amqp.Persistent,
			ContentType:   "application/json",
			Body:          []byte(body),
		})
	if err != nil {
		return "", err
	}
	stored, err := confirm.WaitContext(ctx)
	if err != nil {
		return "", fmt.Errorf("no confirm within %s: the message may or may not be stored", patience)
	}
	select {
	case back := <-returns: // it comes before the confirm
		return "", fmt.Errorf("there is no queue for %s (%s): does the TaskQueue exist?", key, back.ReplyText)
	default:
	}
	if !stored {
		return "", fmt.Errorf("the broker refused the message: the queue may be full")
	}
	return id, nil
}

func newID() string {
	var random [16]byte
	_, _ = rand.Read(random[:])
	return hex.EncodeToString(random[:])
}
