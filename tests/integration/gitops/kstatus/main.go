// Command kstatus prints, for each object of the JSON array on standard input, the status by which
// kpt, Flux and others judge it: a JSON array of {"status", "message"} in the same order.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type judgement struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func run() error {
	var objects []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return fmt.Errorf("standard input is no JSON array of objects: %w", err)
	}
	judgements := make([]judgement, 0, len(objects))
	for _, object := range objects {
		var one unstructured.Unstructured
		if err := one.UnmarshalJSON(object); err != nil {
			return fmt.Errorf("not an object of Kubernetes: %w", err)
		}
		result, err := status.Compute(&one)
		if err != nil {
			return fmt.Errorf("%s %s: %w", one.GetKind(), one.GetName(), err)
		}
		judgements = append(judgements, judgement{string(result.Status), result.Message})
	}
	return json.NewEncoder(os.Stdout).Encode(judgements)
}
