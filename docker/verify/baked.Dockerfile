# An image with weights in it: the example of docs/containers.md with the stand-in for the Hub.
FROM vim-embed:cpu
ARG HF_ENDPOINT
ENV HF_HOME=/weights VIM_EMBED_MODELS=micro=someone/vim
USER 0
RUN ["vim-embed-server", "fetch", "micro=someone/vim"]
USER 10001:10001
ENV HF_HUB_OFFLINE=1
