// The words of the drawing in the page's language.

export const WORDS = {
  en: {
    noise: "noise",
    clean: "clean",
    down: "denoise",
    up: "add noise",
    calls: (steps, calls) => `${steps} step${steps > 1 ? "s" : ""}, ${calls} model call${calls > 1 ? "s" : ""}`,
    schedule: "SD schedule; flow models have other levels",
    assumed: "SD schedule and TCD's timesteps, not the connected sigmas",
    nothing: "denoise 0: the latent is returned unchanged",
    step: (i, t, now, s, down) => `step ${i}: from timestep ${t} (noise ${now}) down to ${s} (${down})`,
    back: (next, up) => `, back up to ${next} (${up})`,
    last: "; no noise is added",
  },
  zh: {
    noise: "噪声",
    clean: "干净",
    down: "去噪",
    up: "加噪",
    calls: (steps, calls) => `${steps} 步，调用模型 ${calls} 次`,
    schedule: "按 SD 的噪声调度绘制；流模型的噪声水平不同",
    assumed: "按 SD 的噪声调度和 TCD 的时间步绘制，并非所连接的 sigmas",
    nothing: "降噪为 0：原样返回 Latent",
    step: (i, t, now, s, down) => `第 ${i} 步：从时间步 ${t}（噪声 ${now}）降到 ${s}（${down}）`,
    back: (next, up) => `，再升回 ${next}（${up}）`,
    last: "；不加噪声",
  },
  ja: {
    noise: "ノイズ",
    clean: "なし",
    down: "ノイズ除去",
    up: "ノイズ追加",
    calls: (steps, calls) => `${steps} ステップ、モデル呼び出し ${calls} 回`,
    schedule: "SD のスケジュールによる図。フローモデルではノイズ量が異なります",
    assumed: "SD のスケジュールと TCD のタイムステップによる図。接続された sigmas ではありません",
    nothing: "denoise 0：潜在画像をそのまま返します",
    step: (i, t, now, s, down) => `ステップ ${i}：タイムステップ ${t}（ノイズ ${now}）から ${s}（${down}）へ下がり`,
    back: (next, up) => `、${next}（${up}）へ戻ります`,
    last: "、ノイズは加えません",
  },
};

/** Those of the language that the page is set to; of English where there are none. */
export function words(app) {
  return WORDS[app.extensionManager?.setting?.get("Comfy.Locale")] ?? WORDS.en;
}
