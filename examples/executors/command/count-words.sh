#!/bin/sh
# Handler "count-words": how many words has the text of the payload, {"text": "…"}?
#
# Run by: python -m taskqueue worker --command 'count-words=sh count-words.sh {payload}'
set -eu

# A script that understands more JSON than this would ask a parser; the worker gives it a file.
text=$(sed -n 's/.*"text": *"\([^"]*\)".*/\1/p' "$1")
if [ -z "$text" ]; then
    echo 'the payload has no "text"' >&2
    exit 65 # EX_DATAERR: another attempt cannot help
fi
if [ "$text" = "not yet" ] && [ "$TASKQUEUE_ATTEMPT" = 1 ]; then
    echo "attempt $TASKQUEUE_ATTEMPT of $TASKQUEUE_MAX_ATTEMPTS: not yet" >&2
    exit 75 # EX_TEMPFAIL: try again
fi
case "$text" in
wait*)
    trap 'echo "cleaned up"; exit 143' TERM
    echo "waiting, to be cancelled" # a line of the worker's log
    sleep 1000 &
    wait $!
    ;;
esac
printf '{"words": %d}\n' "$(echo "$text" | wc -w)" >"$TASKQUEUE_RESULT_FILE"
