"""Tools that break things on purpose: one API for all suites.

A fault that lasts is a context manager: it begins on entry and is undone on exit, however the body
ends. Each tool has one short test in this folder that shows its effect, and
docs/development/testing.md (section *Faults*) has examples.

In a process, without a cluster:

* `api_proxy.open_api_proxy`: a proxy before the API server. `ApiProxy.fault` applies one of
  `api_faults` to the requests that a rule selects; `ApiProxy.disturb_watches` to open watches.
* `relay.relay_to` (async) and `relay.open_relay` (any thread): a TCP relay before the broker, or
  anything else: `Relay.delayed`, `Relay.black_hole`, `Relay.down`, `Relay.cut`.

In the cluster:

* `network.PodNetwork`: cuts, loses or slows the packets of one pod, in the node's kernel.
* `clock.PodClock`: steps the wall clock of the programs in a pod; `clock.ProcessClock`, of
  processes on this machine.
* `pods.PodAddition`: what a pod needs for a tool (`ApiProxy.pod_addition`, `clock.pod_addition`),
  for a pod's manifest or, with a rollout, for a Deployment.
* `processes.Processes`: kills and stops processes by role: `operator`, `rabbitmq`, `worker`,
  `whole_pod`, and programs of a node such as `KUBELET`; takes the power from a worker node.
* `broker.BrokerFaults`: alarms, deletions, closed connections, a stopped node;
  `broker_cluster.three_nodes`: a RabbitMQ of three.
* `watcher.watching`: records what happens, by code of its own; `Watcher.verdict` finds what was
  lost, ended twice or published twice.
"""
