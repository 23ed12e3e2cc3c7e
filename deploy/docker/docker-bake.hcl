# The image for clusters, from the root of the repository:
#   docker buildx bake -f deploy/docker/docker-bake.hcl --load
#   IMAGE=registry.example.com/qrm-server VERSION=0.1.0 REVISION=$(git rev-parse HEAD) SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) \
#     docker buildx bake -f deploy/docker/docker-bake.hcl release --push
# For cards: the same with the targets cuda and release-cuda.
variable "IMAGE" { default = "qrm-server" }
variable "VERSION" { default = "latest" }
variable "REVISION" { default = "" }

# For this machine.
target "default" {
  dockerfile = "deploy/docker/Dockerfile"
  tags       = ["${IMAGE}:${VERSION}"]
  labels = {
    "org.opencontainers.image.version"  = VERSION
    "org.opencontainers.image.revision" = REVISION
  }
}

# For cards, under the tag that the chart takes for them. It serves on the processor where there is none.
target "cuda" {
  inherits = ["default"]
  args = {
    COMPILER      = "cuda"
    FEATURES      = "cuda"
    RUNTIME_IMAGE = "nvidia/cuda:12.9.1-runtime-ubuntu24.04"
  }
  tags = ["${IMAGE}:${VERSION}-cuda"]
}

# For both platforms, with BuildKit's own word on what went in and what came out; that needs a builder of the docker-container
# driver. Best give it a machine of each kind (`docker buildx create --append --platform linux/arm64 ...`): under emulation the
# build takes hours.
target "release" {
  inherits  = ["default"]
  platforms = ["linux/amd64", "linux/arm64"]
  attest    = ["type=provenance,mode=max", "type=sbom"]
}

target "release-cuda" {
  inherits = ["release", "cuda"]
}
