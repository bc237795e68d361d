# shellcheck shell=bash disable=SC2154
# A start that must fail: says why on standard error, with a code that is not 0, no traceback.
expect() { # words, then docker run's arguments
    local words=$1 code=0
    shift
    timeout 600 docker run --rm --read-only --tmpfs /tmp -e VIM_EMBED_PUBLISHED_HOST=127.0.0.1 "$@" \
        > "$WORK/out" 2>&1 || code=$?
    if [ "$code" = 0 ] || ! grep -qi -- "$words" "$WORK/out" || grep -q Traceback "$WORK/out"; then
        echo "expected a failure with: $words; exit code $code and this came:"
        cat "$WORK/out"
        return 1
    fi
    echo "exit code $code: $(grep -im1 -- "$words" "$WORK/out" | cut -c1-150)"
}
