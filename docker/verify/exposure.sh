# shellcheck shell=bash disable=SC2154
# Reached from this machine alone unless told otherwise, and then with a key.
elsewhere=http://$(hostname -I | awk '{print $1}'):$VIM_EMBED_PUBLISH_PORT
status() { curl -s -o /dev/null -w '%{http_code}' --max-time 10 --noproxy '*' "$@" || true; }

healthy
[ "$(docker compose port vim-embed 8000)" = "127.0.0.1:$VIM_EMBED_PUBLISH_PORT" ]
[ "$(status "$VIM_EMBED_URL/models")" = 200 ]
[ "$(status "$elsewhere/models")" = 000 ]
echo "published on 127.0.0.1; $elsewhere refuses connections"
stop

VIM_EMBED_PUBLISH=0.0.0.0 VIM_EMBED_API_KEYS=a-key healthy
[ "$(status "$elsewhere/models")" = 401 ]
[ "$(status -H 'Authorization: Bearer wrong' "$elsewhere/models")" = 401 ]
[ "$(status -H 'Authorization: Bearer a-key' "$elsewhere/models")" = 200 ]
echo "published on 0.0.0.0 with a key: 401 without it and with a wrong one, 200 with it"
code=0
VIM_EMBED_API_KEY=wrong "$PYTHON" -m vim_embed_client.cli.main models > "$WORK/out" 2>&1 || code=$?
grep -q "VIM_EMBED_API_KEY" "$WORK/out" || { cat "$WORK/out"; false; }
[ "$code" != 0 ]
echo "the client with a wrong key: exit code $code: $(head -1 "$WORK/out")"
