# shellcheck shell=bash disable=SC2154
# What can be checked without building: the Dockerfile's targets, and compose's files and profiles.
for profile in '' monitoring '*'; do
    for files in compose.yaml "$COMPOSE_FILE"; do
        COMPOSE_FILE=$files docker compose --profile "$profile" config --quiet
    done
done
echo "compose accepts the GPU's and the CPU's files with every profile"
if ! docker build --help | grep -q -- --check; then
    echo "skipped: this docker build has no --check"
else
    for target in cpu gpu; do
        if docker build --check --target "$target" \
            ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"} . > "$WORK/check" 2>&1; then
            echo "docker build --check --target $target: no warnings"
        elif grep -q "failed to resolve source metadata" "$WORK/check"; then
            echo "skipped: the base image of $target cannot be had here"
        else
            cat "$WORK/check"
            false
        fi
    done
fi
