{{- define "engineroom.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "engineroom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "engineroom.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "engineroom.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What selects pods; never changes during a release's life. */ -}}
{{- define "engineroom.selector" -}}
app.kubernetes.io/name: {{ include "engineroom.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "engineroom.labels" -}}
{{ include "engineroom.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: engineroom
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "engineroom.image" -}}
{{- $name := .image.repository -}}
{{- if .image.registry }}{{ $name = printf "%s/%s" .image.registry $name }}{{ end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "engineroom.secret" -}}
{{- default (include "engineroom.fullname" .) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "engineroom.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "engineroom.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* "true" where the cluster has an API, or is said to have it. */ -}}
{{- define "engineroom.has" -}}
{{- if or (.root.Capabilities.APIVersions.Has .api) (has .api .root.Values.assumeApiVersions) -}}true{{- end -}}
{{- end -}}

{{- /* Ends with one sentence where something that was asked for needs an API that is not there. */ -}}
{{- define "engineroom.need" -}}
{{- if not (include "engineroom.has" .) -}}
{{- fail (printf "%s needs %s, which this cluster does not have: install it, or leave the value out. Where no cluster is asked (helm template), name it in assumeApiVersions." .what .api) -}}
{{- end -}}
{{- end -}}

{{- /* The name of the model that the gateway asks for. */ -}}
{{- define "engineroom.gatewayModel" -}}
{{- $own := default (default "" .Values.config.model) .Values.config.name -}}
{{- if .Values.gateway.model -}}
{{- .Values.gateway.model -}}
{{- else if .Values.config.models -}}
{{- fail "gateway.model: config.models has several models and a gateway serves one: name it" -}}
{{- else if or (not $own) (contains "/" $own) -}}
{{- fail (printf "gateway.model: say under which name config.model (%s) is served" $own) -}}
{{- else -}}
{{- $own -}}
{{- end -}}
{{- end -}}

{{- define "engineroom.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "engineroom.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Whom the gateway of these pods lets in: the keys, each from one entry of the Secret. */ -}}
{{- define "engineroom.keys" -}}
{{- if .root.Values.auth.anonymous }}
- name: ALLOW_ANONYMOUS
  value: "1"
{{- else }}
{{- range $variable, $entry := .entries }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ include "engineroom.secret" $.root }}
      key: {{ $entry }}
{{- end }}
- name: ENGINEROOM_API_KEYS
  value: {{ range $i, $variable := keys .entries | sortAlpha }}{{ if $i }},{{ end }}$({{ $variable }}){{ end }}
{{- end }}
{{- end -}}

{{- define "engineroom.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The values that name an address outside the pods, which networkPolicy has to let them reach. */ -}}
{{- define "engineroom.outside" -}}
{{- $named := dict "config.otlp_endpoint" .Values.config.otlp_endpoint "config.engine_url" .Values.config.engine_url -}}
{{- range $i, $model := .Values.config.models -}}
{{- $_ := set $named (printf "config.models[%d].engine_url" $i) $model.engine_url -}}
{{- end -}}
{{- range $name, $value := .Values.env -}}
{{- if regexMatch "(?i)^(https?_proxy|all_proxy|hf_endpoint|engineroom_(otlp_endpoint|engine_url))$" $name -}}
{{- $_ := set $named (printf "env.%s" $name) $value -}}
{{- end -}}
{{- end -}}
{{- $found := list -}}
{{- range $name := keys $named | sortAlpha -}}
{{- $value := get $named $name | default "" | toString -}}
{{- $here := regexMatch "^([a-z0-9]+://)?(127\\.|localhost(:|/|$)|\\[::1\\])" $value -}}
{{- $hub := and (hasSuffix "HF_ENDPOINT" $name) (regexMatch "^https://[^/:]+(:443)?(/|$)" $value) -}}
{{- if and $value (not $here) (not $hub) -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}
{{- join ", " $found -}}
{{- end -}}
