{{/* Short enough that what is put after it still makes a name. */}}
{{- define "qrm.name" -}}
{{- $long := printf "%s-qrm-server" .Release.Name -}}
{{- contains "qrm-server" .Release.Name | ternary .Release.Name $long | trunc 48 | trimSuffix "-" -}}
{{- end }}

{{/* What selects one component's pods: list . "server" */}}
{{- define "qrm.selector" -}}
app.kubernetes.io/name: qrm-server
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "qrm.labels" -}}
{{ include "qrm.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{- define "qrm.account" -}}
{{ .Values.serviceAccount.name | default (include "qrm.name" .) }}
{{- end }}

{{/* The Secret with keys, if there is one. */}}
{{- define "qrm.keys" -}}
{{- with .Values.keys }}{{ .existingSecret | default (printf "%s-keys" (include "qrm.name" $)) }}{{ end -}}
{{- end }}

{{/* Whether clients need keys. */}}
{{- define "qrm.closed" -}}
{{- if or .Values.keys.existingSecret .Values.keys.clients }}true{{ end -}}
{{- end }}

{{/* Seconds from the word that a server goes to SIGKILL: it serves, it drains, and the last answers are taken. */}}
{{- define "qrm.grace" -}}
{{ add .Values.drain.preStopSeconds .Values.drain.timeoutSeconds 10 }}
{{- end }}

{{- define "qrm.scheme" -}}
http{{ if .Values.tls.secret }}s{{ end }}
{{- end }}

{{/* list . "/ready" */}}
{{- define "qrm.probe" -}}
{{- if (index . 0).Values.tls.clientCaSecret -}}
# The kubelet has no certificate to show: that the port is open, which it is once the model is loaded, must do.
tcpSocket: {port: http}
{{- else -}}
httpGet: {path: {{ index . 1 }}, port: http, scheme: {{ include "qrm.scheme" (index . 0) | upper }}}
{{- end }}
{{- end }}

{{/* What the server's pods and Envoy's have in common. */}}
{{- define "qrm.pod" -}}
serviceAccountName: {{ include "qrm.account" . }}
automountServiceAccountToken: false
# A service named qrm would otherwise be given to the server as QRM_PORT.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
terminationGracePeriodSeconds: {{ include "qrm.grace" . }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  # Volumes that are written to belong to it; a large one that does already is not walked through.
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "qrm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
